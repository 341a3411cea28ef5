"""bf16-mixed with every tuner: losses, relations and logits stay in float32, and the result is near that of 32-true."""

import math

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.lightning_modules import FewShotClassifier, Objective, losses
from lightning.pytorch import Trainer
from quiet import QUIET
from small_backbones import SMALL
from small_tuners import TUNERS


class Seen(FewShotClassifier):
    """The types of what the objective and the test get."""

    def terms(self, batch):
        terms = super().terms(batch)
        self.types = {name: term.dtype for name, term in terms.items()}
        return terms

    def finite_scores(self, scores):
        self.types = {**getattr(self, "types", {}), "scores": scores.dtype}
        return super().finite_scores(scores)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tuner", TUNERS)
def test_every_tuner_trains_in_bf16_with_losses_and_logits_in_float32(weights, tiny_backbone, tuner):
    backbone = SMALL["open_clip CLIP ViT"](weights) if tuner == "LDC" else tiny_backbone  # four blocks
    module = Seen(backbone, TUNERS[tuner](), Objective())
    data = ShapesDataModule(shot=2, query=2, views=2)
    trainer = Trainer(max_epochs=2, precision="bf16-mixed", callbacks=[StageSwitch()], **QUIET)
    trainer.fit(module, datamodule=data)
    assert all(math.isfinite(value) for value in trainer.callback_metrics.values())
    assert all(value.isfinite().all() for value in module.tuner.adapter_state().values())
    trainer.test(module, datamodule=data, verbose=False)
    assert set(module.types.values()) == {torch.float32}
    mixed = module.confidence.measures(10)["cross_entropy"]
    # The trained values in 32-true give nearly the same.
    Trainer(**QUIET).test(module, datamodule=data, verbose=False)
    assert module.confidence.measures(10)["cross_entropy"] == pytest.approx(mixed, abs=0.25)


@pytest.mark.parametrize("form", ["cosine", "softmax"])
def test_the_terms_of_half_precision_features_are_those_of_float32_under_autocast(form):
    generator = torch.Generator().manual_seed(0)
    f, t = (torch.randn(size, 16, generator=generator).bfloat16() for size in (6, 3))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def terms(features, texts):
        relations = losses.visual_relations(features, features[:3])
        fused = losses.fuse_relations(relations, losses.text_relations(texts, labels, labels[:3]), 0.5)
        drawn = torch.tensor([5, 0, 0])
        return torch.stack(
            [
                losses.cross_modal_loss(features, texts, labels),
                losses.anti_visual_loss(features, labels, num_classes=3, prototype_indices=drawn),
                losses.visual_loss(features, labels, num_classes=3),
                losses.relation_alignment_loss(relations, fused, form=form),
            ]
        )

    expected = terms(f.float(), t.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = terms(f, t)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
