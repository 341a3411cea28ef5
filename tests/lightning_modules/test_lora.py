"""LoRA through peft: what is adapted, how it starts, what it leaves alone."""

from math import sqrt

import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import CLIPAdapter, LoRA

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def randomised(tuner, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tuner.load_adapter_state({k: torch.randn(v.shape, generator=generator) for k, v in tuner.adapter_state().items()})


@pytest.mark.parametrize(
    ("settings", "towers", "layers"),
    [
        ({}, {"vision"}, 6),
        ({"encoder": "text"}, {"text"}, 6),
        ({"encoder": "both"}, {"vision", "text"}, 12),
        ({"projections": ["q", "v", "o"], "blocks": [-1]}, {"vision"}, 3),
        ({"projections": ["q"], "blocks": [0, -2]}, {"vision"}, 1),
    ],
)
def test_the_chosen_layers_are_adapted_and_only_they_are_trained(tiny_backbone, settings, towers, layers):
    module = FewShotClassifier(tiny_backbone, LoRA(rank=2, **settings))
    state = module.tuner.adapter_state()
    assert module.tuner.trains == towers
    assert len(state) == 2 * layers
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert trained == {id(value) for value in state.values()}

    module.set_classes(["cat", "dog"])
    module.start_task(0)
    randomised(module.tuner)
    module(IMAGES).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in state.values())
    assert all(p.grad is None for p in module.parameters() if id(p) not in trained)


def test_at_the_start_and_while_disabled_it_is_the_frozen_model(tiny_backbone, tiny_clip_files):
    frozen = OpenCLIP(*map(str, tiny_clip_files))
    module = FewShotClassifier(tiny_backbone, LoRA("both"))
    module.set_classes(["cat", "dog"])
    module.start_task(0)
    expected = frozen.encode_image(IMAGES)
    assert torch.equal(module.image_features(IMAGES), expected)
    randomised(module.tuner)
    assert not torch.allclose(module.image_features(IMAGES), expected, atol=1e-2)
    assert not torch.allclose(module.text_features(), frozen.encode_text(module.prompts.tokens), atol=1e-2)
    with module.zero_shot():
        assert torch.equal(module.image_features(IMAGES), expected)
        torch.testing.assert_close(module.text_features(), frozen.encode_text(module.prompts.tokens))


@pytest.mark.parametrize("rslora", [True, False])
def test_the_scale_is_alpha_over_sqrt_rank(tiny_backbone, rslora):
    tuner = LoRA(rank=4, alpha=6.0, rslora=rslora, dropout=0.0)
    tuner.attach(tiny_backbone)
    randomised(tuner)
    name = tiny_backbone.attention_layers("vision")[0] + ".q_proj"
    layer, x = tiny_backbone.get_submodule(name), IMAGES[0, 0, :5]
    a, b = tuner.adapter_state()[f"{name}.lora_A"], tuner.adapter_state()[f"{name}.lora_B"]
    scale = 6.0 / (sqrt(4) if rslora else 4)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + scale * x @ a.T @ b.T)


def test_the_start_depends_on_the_seed_alone(tiny_backbone):
    tuner = LoRA(rank=4)
    tuner.attach(tiny_backbone)

    def start(seed):
        tuner.reset(seed, 5)
        return {k: v.detach().clone() for k, v in tuner.adapter_state().items()}

    first = start(3)
    randomised(tuner)
    torch.manual_seed(99)
    again, other = start(3), start(4)
    assert all(torch.equal(first[k], again[k]) for k in first)
    for key, value in first.items():
        if key.endswith("lora_B"):
            assert not value.any()
            continue
        assert not torch.equal(value, other[key])
        bound = sqrt(6 / ((1 + 5) * value.shape[1]))
        assert value.abs().max() <= bound
        assert value.std() == pytest.approx(bound / sqrt(3), rel=0.2)
    tiny_backbone.double()
    tuner.reset(3, 5)
    assert all(torch.equal(first[k].double(), v) for k, v in tuner.adapter_state().items())


def test_dropout_acts_in_training_only_and_the_backbone_stays_in_evaluation(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, LoRA(dropout=0.5))
    randomised(module.tuner)
    module.eval()
    assert torch.equal(module.image_features(IMAGES), module.image_features(IMAGES))
    module.train()
    assert not torch.equal(module.image_features(IMAGES), module.image_features(IMAGES))
    assert not module.backbone.model.visual.training


def test_saved_and_loaded_is_the_same_bit_for_bit(tiny_backbone, tiny_clip_files):
    first = FewShotClassifier(tiny_backbone, LoRA())
    randomised(first.tuner)
    state = {k: v.detach().clone() for k, v in first.tuner.adapter_state().items()}
    second = FewShotClassifier(OpenCLIP(*map(str, tiny_clip_files)), LoRA())
    second.tuner.load_adapter_state(state)
    assert torch.equal(first.image_features(IMAGES), second.image_features(IMAGES))


def test_an_adapter_of_other_settings_is_refused_with_the_reason(tiny_backbone):
    tuner = LoRA(rank=4)
    tuner.attach(tiny_backbone)
    state = dict(tuner.adapter_state())
    key = next(iter(state))
    with pytest.raises(DtrapError, match="names differ"):
        tuner.load_adapter_state({k: v for k, v in state.items() if k != key})
    with pytest.raises(DtrapError, match=r"\[8, 32\], expected \[4, 32\]"):
        tuner.load_adapter_state(state | {key: torch.zeros(8, 32)})


def test_what_cannot_be_adapted_is_named(tiny_backbone, tiny_clip_files):
    with pytest.raises(DtrapError, match="nothing to adapt"):
        LoRA(projections=[]).attach(tiny_backbone)
    with pytest.raises(DtrapError, match="block 2 does not exist; the vision tower has the blocks 0 to 1"):
        LoRA(blocks=[2]).attach(tiny_backbone)
    tuner = LoRA()
    tuner.attach(tiny_backbone)
    with pytest.raises(DtrapError, match="another backbone"):
        tuner.attach(OpenCLIP(*map(str, tiny_clip_files)))


def test_adapters_of_two_tuners_on_one_backbone_are_refused(tiny_backbone):
    """The first one's values would stay in the second one's zero-shot features."""
    tuner = LoRA()
    FewShotClassifier(tiny_backbone, tuner)
    with pytest.raises(DtrapError, match="6 layers adapted by another tuner"):
        FewShotClassifier(tiny_backbone, LoRA("text"))
    with pytest.raises(DtrapError, match="adapters of another tuner than clip-adapter"):
        FewShotClassifier(tiny_backbone, CLIPAdapter())
    FewShotClassifier(tiny_backbone, tuner)


@pytest.mark.parametrize("settings", [{"encoder": "image"}, {"projections": ["q", "w"]}, {"rank": 0}, {"dropout": 1.0}])
def test_unknown_settings_are_named(settings):
    with pytest.raises(DtrapError, match=next(iter(settings))):
        LoRA(**settings)


def test_an_adapter_that_does_not_fit_changes_nothing(tiny_backbone):
    tuner = LoRA(rank=4)
    tuner.attach(tiny_backbone)
    randomised(tuner)
    before = {k: v.detach().clone() for k, v in tuner.adapter_state().items()}
    last = list(before)[-1]
    with pytest.raises(DtrapError, match="does not fit"):
        tuner.load_adapter_state({k: torch.zeros_like(v) for k, v in before.items()} | {last: torch.zeros(1, 1)})
    assert all(torch.equal(before[k], v) for k, v in tuner.adapter_state().items())


def test_the_training_is_described_with_its_share(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, LoRA(rank=1, projections=["q"], blocks=[0]))
    whole = sum(p.numel() for p in module.backbone.parameters())
    assert f"trains 64 of {whole:,} parameters ({6400 / whole:.2f} %), vision tower" in module.describe_training()
