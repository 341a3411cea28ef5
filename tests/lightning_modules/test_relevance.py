"""Relevance maps of tuned models: with and without the tuner, on every kind of backbone."""

import pytest
import torch
from dtrap.datamodules import ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.relevance import gradient_map, predictions, text_map
from dtrap.lightning_modules.tuners import FWT, LDC, CLIPAdapter, FullFineTuning, LinearHead, LoRA, MaPLe, StepSPT
from dtrap.metrics import gradient_relevance, patch_text_relevance
from lightning.pytorch import Trainer
from small_backbones import SMALL
from torch.nn.functional import normalize

NAMES = ["circle", "ring", "star"]
VIT = "open_clip CLIP ViT"
PAIRS = [
    *((backbone, lambda: LoRA(rank=2)) for backbone in SMALL if backbone != "open_clip CLIP ResNet"),
    (VIT, MaPLe),
    (VIT, CLIPAdapter),
    (VIT, lambda: FullFineTuning("text")),
    (VIT, lambda: FWT(LoRA("both", rank=2))),
]


def trained(backbone, tuner):
    """A module whose tuner's parameters are moved away from their start, as by a training."""
    torch.manual_seed(0)
    module = FewShotClassifier(backbone, tuner, image_chunk=2, text_chunk=2)
    module.set_classes(NAMES)
    module.start_task(0)
    with torch.no_grad():
        for parameter in module.tuner.trained_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("backbone", "tuner"), PAIRS)
def test_maps_before_and_after(backbone, tuner, tmp_path):
    backbone = SMALL[backbone](tmp_path)
    images, classes = torch.randn(5, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1])
    blocks = backbone.blocks("vision")
    plain = FewShotClassifier(backbone, LinearHead())
    plain.set_classes(NAMES)
    texts = plain.text_features()
    # Before a tuner is attached; LoRA changes the modules of the backbone.
    expected = patch_text_relevance(backbone.encode_image, blocks, images, texts)

    def logits(part):
        cosines = normalize(backbone.encode_image(part), dim=-1) @ normalize(texts, dim=-1).T
        return 100 * cosines.gather(1, classes[:, None])[:, 0]

    expected_relevance = gradient_relevance(logits, blocks, images)
    module = trained(backbone, tuner()).train()
    state = torch.get_rng_state()
    with module.zero_shot():
        torch.testing.assert_close(text_map(module, images), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient_map(module, images, classes), expected_relevance, atol=1e-4, rtol=1e-3)
    after, relevance = text_map(module, images), gradient_map(module, images, classes)
    assert after.shape == (5, 3, 4, 4)
    assert relevance.shape == (5, 4, 4)
    assert (after - expected).abs().max() > 1e-3
    assert (relevance - expected_relevance).abs().max() > 1e-3
    assert after.abs().max() <= 1 + 1e-5
    assert torch.equal(text_map(module, images[3:]), after[3:])  # an image's map does not depend on the others
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())
    module.eval()
    assert torch.equal(predictions(module, images), module(images).argmax(dim=1))


@pytest.mark.filterwarnings("ignore")
def test_a_map_after_a_fit_and_a_test(tmp_path):
    """Both leave the module in training mode, and the test its texts behind."""
    data = ShapesDataModule(shot=1, query=1, views=2, images_per_class=2)
    module = FewShotClassifier(SMALL[VIT](tmp_path), LoRA(rank=2))
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    query = data.query()
    first = text_map(module, query["images"])
    assert first.shape == (5, 5, 4, 4)
    assert torch.equal(text_map(module, query["images"]), first)  # no dropout
    assert torch.equal(
        gradient_map(module, query["images"], query["labels"]), gradient_map(module, query["images"], query["labels"])
    )


def test_what_has_no_map_says_so(tmp_path):
    images = torch.randn(2, 3, 32, 32)
    of_levels = trained(SMALL[VIT](tmp_path / "vit"), LDC())
    with pytest.raises(DtrapError, match=r"the tuner ldc reads \d+ values of an image.* Use the gradient map"):
        text_map(of_levels, images)
    assert gradient_map(of_levels, images, torch.tensor([0, 1])).max() > 0
    resnet = trained(SMALL["open_clip CLIP ResNet"](tmp_path / "resnet"), LinearHead())
    for find in (text_map, lambda *given: gradient_map(*given, torch.tensor([0, 1]))):
        with pytest.raises(DtrapError, match=r"transformer blocks; small_rn/.* has none .*Use a vision transformer"):
            find(resnet, torch.randn(2, 3, 64, 64))


def test_the_gradient_map_is_of_the_tuners_own_logits(tmp_path):
    """StepSPT's logits come from a head that does not read the texts."""
    module = trained(SMALL[VIT](tmp_path), StepSPT())
    images, classes = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    before = gradient_map(module, images, classes)
    with torch.no_grad():
        module.tuner.head.weight.neg_()
    assert (gradient_map(module, images, classes) - before).abs().max() > 1e-3
