"""The linear head: its starts, what is trained, its logits."""

from math import sqrt

import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import TaskData
from dtrap.lightning_modules.tuners.linear_head import LinearHead
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def classifier(backbone, start="text", names=("cat", "dog", "bird")):
    module = FewShotClassifier(backbone, LinearHead(start), Objective(0.0, 0.0, logit_scale=50.0))
    module.set_classes(list(names))
    return module


def fit(module, precision="32-true", epochs=5):
    class Losses(Callback):
        def __init__(self):
            self.losses = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.losses.append(float(outputs["loss"]))

    recorder = Losses()
    trainer = Trainer(
        precision=precision,
        max_epochs=epochs,
        callbacks=[recorder],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([{"images": IMAGES, "labels": LABELS}], batch_size=None))
    return recorder.losses


def started(backbone, start="text", names=("cat", "dog", "bird")):
    module = classifier(backbone, start, names)
    module.start_task(3)
    module.tuner.prepare_task(TaskData(LABELS, module.text_features()))
    return module


def test_the_text_start_is_zero_shot(tiny_backbone):
    module = started(tiny_backbone)
    with module.zero_shot():
        expected = module(IMAGES)
    torch.testing.assert_close(module(IMAGES), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_the_first_loss_of_a_fit_is_zero_shot_and_the_last_is_lower(tiny_backbone, precision):
    module = classifier(tiny_backbone)
    losses = fit(module, precision)
    module.float()
    with module.zero_shot(), torch.no_grad():
        zero_shot = torch.nn.functional.cross_entropy(module(IMAGES), LABELS)
    assert losses[0] == pytest.approx(float(zero_shot), abs={"bf16-mixed": 0.3}.get(precision, 1e-4))
    assert losses[-1] < losses[0]


def test_the_random_start_is_torchs_and_depends_on_the_seed_alone(tiny_backbone):
    module = classifier(tiny_backbone, "random")
    tuner = module.tuner

    def start(seed, classes=40):
        tuner.reset(seed, classes)
        return {name: value.detach().clone() for name, value in tuner.adapter_state().items()}

    first = start(3)
    start(3, classes=2)
    torch.manual_seed(9)
    again, other = start(3), start(4)
    bound = 1 / sqrt(16)
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, other[name])
        assert value.abs().max() <= bound
        assert value.std() == pytest.approx(bound / sqrt(3), rel=0.2)
    module.double()
    assert all(torch.equal(first[name].double(), value) for name, value in start(3).items())
    assert not tuner.needs_task
    assert LinearHead("text").needs_task
    losses = fit(module.float())
    assert losses[-1] < losses[0]


def test_the_logits_are_a_linear_layer_on_the_unit_feature(tiny_backbone):
    module = classifier(tiny_backbone, "random")
    module.start_task(3)
    x = tiny_backbone.encode_image(IMAGES)
    weight, bias = module.tuner.adapter_state().values()
    expected = 50.0 * ((x / x.norm(dim=1, keepdim=True)) @ weight.T + bias)
    torch.testing.assert_close(module(IMAGES), expected)


def test_only_the_head_is_trained(tiny_backbone):
    module = started(tiny_backbone)
    assert module.tuner.trains == frozenset()
    state = module.tuner.adapter_state()
    assert {name: list(value.shape) for name, value in state.items()} == {"weight": [3, 16], "bias": [3]}
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert trained == {id(value) for value in state.values()}
    features, texts = module.image_features(IMAGES), module.text_features()
    module.tuner.classification_loss(features, texts, LABELS, 50.0).backward()
    assert all(value.grad.abs().sum() > 0 for value in state.values())
    assert all(p.grad is None for p in module.backbone.parameters())


def test_saved_and_loaded_is_the_same_bit_for_bit(tiny_backbone, tiny_clip_files, tmp_path):
    first = classifier(tiny_backbone)
    fit(first)
    file = tmp_path / "adapter.safetensors"
    save_file({name: value.detach() for name, value in first.tuner.adapter_state().items()}, file)
    second = classifier(OpenCLIP(*map(str, tiny_clip_files)))
    second.tuner.load_adapter_state(load_file(file))
    first.eval()
    assert torch.equal(first(IMAGES), second(IMAGES))


def test_mistakes_are_named(tiny_backbone):
    with pytest.raises(DtrapError, match="start is 'zero'"):
        LinearHead("zero")
    module = started(tiny_backbone)
    with pytest.raises(DtrapError, match="names differ"):
        module.tuner.load_adapter_state({"weight": torch.zeros(2, 16)})
    wider = type("Wider", (), {"feature_dim": 24, "identifier": "wider"})
    with pytest.raises(DtrapError, match="width 16, but wider has 24"):
        module.tuner.attach(wider)
