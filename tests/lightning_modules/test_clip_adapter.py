"""CLIP-Adapter: the authors' run, the start, what is trained, saving."""

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.datamodules.views import Preprocessing
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.tuners.clip_adapter import CLIPAdapter
from feature_backbone import EpochBatches, FeatureBackbone
from lightning.pytorch import Callback, Trainer
from quiet import QUIET
from reference_files import assert_golden, golden
from torch.utils.data import DataLoader

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Seen(Callback):
    """Set the start; record losses, rates, accuracies, and the test logits before and after."""

    def __init__(self, start, batches, test):
        self.start, self.batches, self.test = start, batches, test
        self.losses, self.rates, self.accuracies, self.ends = [], [], [], []

    def look(self, module):
        with torch.no_grad():
            self.ends.append((module.tuner.adapter_output(self.test), module(self.test)))

    def on_fit_start(self, trainer, pl_module):
        pl_module.tuner.load_adapter_state(self.start)
        self.look(pl_module)

    def on_train_epoch_start(self, trainer, pl_module):
        self.batches.epoch = trainer.current_epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        with torch.no_grad():
            right = pl_module(batch["images"]).argmax(dim=1) == batch["labels"]
        self.accuracies.append(100 * float(right.double().mean()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer, pl_module):
        self.look(pl_module)


def test_the_authors_run_is_repeated():
    settings, arrays = golden("clip_adapter_w6s4")
    objective = Objective(0.0, 0.0, logit_scale=settings["logit_scale"])
    tuner = CLIPAdapter(settings["ratio"], settings["reduction"])
    module = FewShotClassifier(FeatureBackbone(arrays["in.text_features"]), tuner, objective)
    module.set_classes([str(number) for number in range(settings["way"])])
    batches = EpochBatches(
        arrays["in.train_features"].double(), arrays["in.train_labels"].long(), settings["batch_size"], drop_last=True
    )
    start = {name: arrays[f"in.start.{name}"].double() for name in ("down", "up")}
    seen = Seen(start, batches, arrays["in.test_features"].double())
    trainer = Trainer(precision="64-true", max_epochs=settings["epochs"], callbacks=[seen], **QUIET)
    trainer.fit(module, DataLoader(batches, batch_size=None))

    for key, got, tolerance in (
        ("loss", seen.losses, 1e-8),
        ("lr", seen.rates, 1e-12),
        ("accuracy", seen.accuracies, 1e-6),
    ):
        assert got == pytest.approx([step[key] for step in settings["steps"]], rel=tolerance, abs=0)
    for name, value in tuner.adapter_state().items():
        assert_golden(value.detach(), arrays[f"out.end.{name}"])
    for when, (adapter, logits) in zip(("start", "end"), seen.ends, strict=True):
        assert_golden(adapter, arrays[f"out.test_adapter_{when}"])
        assert_golden(logits, arrays[f"out.test_logits_{when}"])
        accuracy = (logits.argmax(dim=1) == arrays["in.test_labels"]).double().mean()
        assert 100 * float(accuracy) == pytest.approx(settings[f"test_accuracy_{when}"])


def started(backbone, tuner, seed=0):
    module = FewShotClassifier(backbone, tuner)
    module.set_classes(["cat", "dog"])
    module.start_task(seed)
    return module


def test_with_ratio_0_and_within_zero_shot_it_is_the_backbone(tiny_backbone):
    module = started(tiny_backbone, CLIPAdapter(ratio=0.0))
    adapted = started(tiny_backbone, CLIPAdapter())
    with module.zero_shot(), adapted.zero_shot():
        expected = module(IMAGES)
        assert torch.equal(adapted(IMAGES), expected)
    assert torch.equal(module(IMAGES), expected)
    assert not torch.allclose(adapted(IMAGES), expected, atol=1e-3)


def test_the_start_depends_on_the_seed_alone_and_has_torchs_default_range(tiny_backbone):
    first, again, other = (
        {k: v.clone() for k, v in started(tiny_backbone, CLIPAdapter(), seed).tuner.adapter_state().items()}
        for seed in (0, 0, 1)
    )
    for name, width in (("down", 16), ("up", 4)):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        assert 0.5 * width**-0.5 < first[name].abs().max() <= width**-0.5


def test_gradients_reach_the_adapter_and_nothing_else(tiny_backbone):
    module = started(tiny_backbone, CLIPAdapter())
    module(IMAGES).square().sum().backward()
    state = module.tuner.adapter_state()
    assert all(value.grad.abs().sum() > 0 for value in state.values())
    reached = {name for name, value in module.named_parameters() if value.grad is not None}
    assert reached == {"tuner.down", "tuner.up"} == {n for n, p in module.named_parameters() if p.requires_grad}


def trained(backbone, objective, precision="32-true"):
    module = FewShotClassifier(backbone, CLIPAdapter(), objective, start_seed=0)
    data = ShapesDataModule(shot=1, query=1, preprocessing=Preprocessing.of(backbone))
    Trainer(precision=precision, max_epochs=5, callbacks=[StageSwitch()], **QUIET).fit(module, datamodule=data)
    return module.tuner.down.detach().clone()


def test_each_of_the_two_terms_acts_on_the_adapter(tiny_backbone, recwarn):
    ends = [trained(tiny_backbone, Objective(*weights)) for weights in ((0.0, 0.0), (0.1, 0.0), (0.0, 3.0))]
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert not [w for w in recwarn if "is constant here" in str(w.message)]


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_train_to_nearly_the_same(tiny_backbone, precision):
    expected = trained(tiny_backbone, Objective())
    torch.testing.assert_close(trained(tiny_backbone, Objective(), precision).float(), expected, rtol=0, atol=1e-2)


def test_saved_and_reloaded_it_predicts_the_same_bit_for_bit(tiny_backbone):
    module = started(tiny_backbone, CLIPAdapter())
    state = {name: value.detach().clone() for name, value in module.tuner.adapter_state().items()}
    fresh = started(tiny_backbone, CLIPAdapter(), seed=1)
    fresh.tuner.load_adapter_state(state)
    assert torch.equal(fresh(IMAGES), module(IMAGES))
    with pytest.raises(DtrapError, match=r"down is \[4, 16\], expected \[8, 16\]"):
        started(tiny_backbone, CLIPAdapter(reduction=2)).tuner.load_adapter_state(state)


def test_mistakes_are_named(tiny_backbone):
    with pytest.raises(DtrapError, match=r"ratio is 1\.5"):
        CLIPAdapter(ratio=1.5)
    with pytest.raises(DtrapError, match="reduction is 0"):
        CLIPAdapter(reduction=0)
    with pytest.raises(DtrapError, match="expected at most 16"):
        CLIPAdapter(reduction=17).attach(tiny_backbone)
    tuner = CLIPAdapter()
    tuner.attach(tiny_backbone)
    with pytest.raises(DtrapError, match="features of width 16, but features has 8"):
        tuner.attach(FeatureBackbone(torch.zeros(2, 8)))
