"""Full fine-tuning: which parameters are a tower's, what is trained, what stays as it was."""

import json
from functools import partial

import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP, Transformers
from dtrap.lightning_modules.tuners import LoRA
from dtrap.lightning_modules.tuners.full import FullFineTuning
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore:The backbone has random weights")

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1])
ENCODERS = ["vision", "text", "both"]
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}
SIGLIP = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none", "image_size": 224}
OPEN_CLIP = {
    "resnet": {"embed_dim": 16, "vision_cfg": RESNET, "text_cfg": TEXT},
    "siglip": {"embed_dim": 192, "vision_cfg": SIGLIP, "text_cfg": TEXT, "custom_text": True, "init_logit_bias": -10},
}


def classifier(backbone, encoder="vision", **settings):
    module = FewShotClassifier(backbone, FullFineTuning(encoder), Objective(0.0, 0.0), **settings)
    module.set_classes(["cat", "dog"])
    module.start_task(0)
    return module


def loss(module):
    images = interpolate(IMAGES, module.backbone.image_size).to(next(module.backbone.parameters()).dtype)
    features, texts = module.image_features(images), module.text_features()
    return module.tuner.classification_loss(features, texts, LABELS, 100.0)


def disturb(tuner):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in tuner.adapter_state().values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))


def trainer(precision="32-true", epochs=3, **settings):
    return Trainer(
        precision=precision,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def loader():
    return DataLoader([{"images": IMAGES, "labels": LABELS}], batch_size=None)


def write_into(backbone, tuner):
    backbone.load_state_dict(backbone.state_dict() | tuner.adapter_state())


def copies(backbone):
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def unchanged(backbone, before):
    return all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def open_clip_backbone(kind, folder):
    (folder / "model.json").write_text(json.dumps(OPEN_CLIP[kind]))
    backbone = OpenCLIP(str(folder / "model.json"), None)
    if kind == "siglip":
        backbone.model.visual.trunk.blocks = backbone.model.visual.trunk.blocks[:2]
    return backbone


def transformers_backbone(kind, folder):
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 60, "max_position_embeddings": 8, "projection_size": 16, "eos_token_id": 59}
    vision = tower | {"image_size": 32, "patch_size": 16}
    config = {"model_type": kind, "projection_dim": 16, "text_config": text, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps(config))
    return Transformers(str(folder), random_weights=True)


@pytest.fixture(params=["clip", *OPEN_CLIP, "transformers-clip", "transformers-siglip"])
def any_backbone(request, tmp_path, tiny_backbone, monkeypatch):
    """Backbones of every kind, and what of them is in neither tower."""
    library, _, kind = request.param.rpartition("-")
    neither = {"model.logit_scale"} | ({"model.logit_bias"} if kind == "siglip" else set())
    if request.param == "clip":
        return tiny_backbone, neither
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = transformers_backbone(kind, tmp_path) if library else open_clip_backbone(kind, tmp_path)
    if library:
        tokens = torch.arange(16).view(2, 8) + 44
        monkeypatch.setattr(backbone, "tokenize", lambda prompts: tokens.clamp(max=59))
    return backbone, neither


def test_every_parameter_is_in_one_tower_or_scales_the_logits(any_backbone):
    backbone, neither = any_backbone
    vision, text = backbone.tower_parameters("vision"), backbone.tower_parameters("text")
    every = dict(backbone.named_parameters())
    assert not vision.keys() & text.keys()
    assert every.keys() - vision.keys() - text.keys() == neither
    assert all(every[name] is value for name, value in (vision | text).items())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_all_of_the_chosen_towers_gets_a_gradient_and_nothing_else(any_backbone, encoder):
    backbone, _ = any_backbone
    module = classifier(backbone, encoder)
    towers = {"both": {"vision", "text"}}.get(encoder, {encoder})
    assert module.tuner.trains == towers
    state = module.tuner.adapter_state()
    assert state.keys() == {name for tower in towers for name in backbone.tower_parameters(tower)}
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert trained == {id(p) for p in module.tuner.trained_parameters()} == {id(p) for p in state.values()}
    module.train()
    before = copies(backbone)
    loss(module).backward()
    assert [name for name, value in state.items() if value.grad is None] == []
    assert all(p.grad is None for p in backbone.parameters())
    assert unchanged(backbone, before)
    assert not any(part.training for part in backbone.modules())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_at_the_start_and_while_disabled_it_is_the_frozen_model(tiny_backbone, tiny_clip_files, encoder):
    frozen = OpenCLIP(*map(str, tiny_clip_files))
    module = classifier(tiny_backbone, encoder)
    images, tokens = frozen.encode_image(IMAGES), module.prompts.tokens
    with module.zero_shot():
        zero_shot = module(IMAGES)
    # A trained text tower takes its prompts together, a frozen one each alone: matrix kernels round differently.
    start = partial(torch.testing.assert_close, expected=zero_shot, atol=1e-4, rtol=0)
    start(module(IMAGES))
    assert torch.equal(module.image_features(IMAGES), images)
    torch.testing.assert_close(module.text_features(), frozen.encode_text(tokens))
    disturb(module.tuner)
    assert torch.allclose(module.image_features(IMAGES), images, atol=1e-3) == (encoder == "text")
    assert torch.allclose(module.text_features(), frozen.encode_text(tokens), atol=1e-3) == (encoder == "vision")
    with module.zero_shot():
        assert torch.equal(module(IMAGES), zero_shot)
    module.start_task(1)
    start(module(IMAGES))


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_a_fit_lowers_the_loss_and_leaves_the_backbone_for_the_next_tuner(tiny_backbone, precision):
    module = classifier(tiny_backbone, "both", learning_rate=1e-4)
    before = copies(tiny_backbone)
    losses = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    fitting = trainer(precision, callbacks=[Losses()])
    fitting.fit(module, loader())
    assert losses[-1] < losses[0]
    tuned = fitting.predict(module, loader())[0]
    after = copies(tiny_backbone)
    assert all(torch.equal(before[name].to(value.dtype), value) for name, value in after.items())
    tiny_backbone.float()
    other = FewShotClassifier(tiny_backbone, LoRA())
    other.set_classes(["cat", "dog"])
    with other.zero_shot():
        plain = other(IMAGES).softmax(dim=-1)
    assert torch.equal(other(IMAGES).softmax(dim=-1), plain)
    assert not torch.allclose(tuned.float(), plain, atol=1e-3)


def test_a_second_fit_on_one_module_is_the_first_one(tiny_backbone):
    module = classifier(tiny_backbone, learning_rate=1e-4)
    ends = []
    for _ in range(2):
        trainer().fit(module, loader())
        ends.append([value.detach().clone() for value in module.tuner.adapter_state().values()])
    assert all(torch.equal(first, second) for first, second in zip(*ends, strict=True))


def test_the_gradients_are_those_of_training_the_tower_in_place(tiny_backbone, tiny_clip_files):
    module = classifier(tiny_backbone, "both")
    disturb(module.tuner)
    inside = OpenCLIP(*map(str, tiny_clip_files))
    write_into(inside, module.tuner)
    inside.requires_grad_(True)
    loss(module).backward()
    texts = inside.encode_text(module.prompts.used_tokens)
    module.tuner.classification_loss(inside.encode_image(IMAGES), texts, LABELS, 100.0).backward()
    parameters = dict(inside.named_parameters())
    for name, value in module.tuner.adapter_state().items():
        torch.testing.assert_close(value.grad, parameters[name].grad)


def test_chunks_give_the_same_gradients(tiny_backbone):
    module = classifier(tiny_backbone, "both").double()
    gradients = []
    for chunk in (None, 1):
        module.image_chunk = module.text_chunk = chunk
        module.zero_grad()
        loss(module).backward()
        gradients.append([value.grad.clone() for value in module.tuner.adapter_state().values()])
    for whole, divided in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, divided)


def test_saved_and_loaded_is_the_same_bit_for_bit(tiny_backbone, tiny_clip_files, tmp_path):
    first = classifier(tiny_backbone, "both")
    disturb(first.tuner)
    file = tmp_path / "adapter.safetensors"
    save_file({name: value.detach() for name, value in first.tuner.adapter_state().items()}, file)
    second = classifier(OpenCLIP(*map(str, tiny_clip_files)), "both")
    second.tuner.load_adapter_state(load_file(file))
    assert torch.equal(first(IMAGES), second(IMAGES))
    with pytest.raises(DtrapError, match="names differ"):
        classifier(OpenCLIP(*map(str, tiny_clip_files)), "text").tuner.load_adapter_state(load_file(file))


def test_its_state_in_a_backbone_needs_no_tuner(tiny_backbone, tiny_clip_files):
    module = classifier(tiny_backbone, "both")
    disturb(module.tuner)
    plain = OpenCLIP(*map(str, tiny_clip_files))
    write_into(plain, module.tuner)
    assert torch.equal(plain.encode_image(IMAGES), module.image_features(IMAGES))
    torch.testing.assert_close(plain.encode_text(module.prompts.tokens), module.text_features())


def test_mistakes_are_named(tiny_backbone, tiny_clip_files):
    with pytest.raises(DtrapError, match="encoder is 'image'"):
        FullFineTuning("image")
    module = classifier(tiny_backbone)
    with pytest.raises(DtrapError, match="another backbone"):
        module.tuner.attach(OpenCLIP(*map(str, tiny_clip_files)))
    with pytest.raises(DtrapError, match="has no backbone"):
        FullFineTuning().reset(0, 2)
