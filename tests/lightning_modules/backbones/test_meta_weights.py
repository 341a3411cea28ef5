"""Models from files are built without random weights; the result is the one of building and then loading."""

import threading
import warnings

import pytest
import torch
import transformers
from dtrap.errors import DtrapError
from dtrap.lightning_modules.backbones import OpenCLIP, Transformers, checkpoint
from dtrap.lightning_modules.backbones import open_clip as module
from safetensors.torch import save_file
from torch import nn

from .conftest import write_config

SMALL = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TIMM = {
    "timm": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear", "image_size": 224},
    "rope": {
        "timm_model_name": "eva02_tiny_patch14_224",
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
}


def file_of(folder, config, **changes):
    """Save the weights of a really built model, and return it."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        real = module._build(module.find_architecture(config))
    path = folder / "weights.safetensors"
    change = changes.get("to", torch.Tensor.contiguous)
    save_file({name: change(value) for name, value in real.state_dict().items()}, path)
    return real.eval(), str(path)


@pytest.mark.parametrize("tower", [None, *TIMM])
@pytest.mark.parametrize("custom_text", [False, True])
def test_features_and_buffers_are_those_of_a_real_model(tmp_path, tower, custom_text):
    vision = SMALL if tower is None else TIMM[tower]
    config = write_config(tmp_path, vision_cfg=vision, custom_text=custom_text)
    real, path = file_of(tmp_path, config)
    backbone = OpenCLIP(config, path)
    images = torch.randn(2, 3, vision["image_size"], vision["image_size"])
    tokens = backbone.tokenize(["a cat", "two dogs and a bird"])
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(images), real.encode_image(images))
        torch.testing.assert_close(backbone.encode_text(tokens), real.encode_text(tokens))
    for name, value in [*backbone.named_parameters(), *backbone.named_buffers()]:
        assert not value.is_meta, name
        assert not value.requires_grad


def test_nothing_is_drawn_for_weights_that_a_file_replaces(tmp_path, monkeypatch):
    config = write_config(tmp_path)
    _, path = file_of(tmp_path, config)
    drawn = []
    monkeypatch.setattr(nn.init, "_no_grad_normal_", lambda tensor, *_, **__: drawn.append(tensor.is_meta) or tensor)
    OpenCLIP(config, path)
    assert drawn
    assert all(drawn)


def test_random_weights_are_the_same_draws_as_those_of_open_clip(tmp_path):
    config = write_config(tmp_path)
    real, _ = file_of(tmp_path, config)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="random weights"):
        backbone = OpenCLIP(config, None)
    assert torch.equal(backbone.model.token_embedding.weight, real.token_embedding.weight)


def test_a_half_precision_file_gives_float32_and_the_file_may_be_replaced(tmp_path):
    config = write_config(tmp_path)
    _, path = file_of(tmp_path, config, to=lambda value: value.half().contiguous())
    backbone = OpenCLIP(config, path)
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}
    _, path = file_of(tmp_path, config)
    backbone = OpenCLIP(config, path)
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    with open(path, "r+b") as file:  # the same file, which a memory map would show
        file.seek(4000)
        file.write(b"\xff" * 20_000)
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_parameters())


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_models_of_transformers(tmp_path, kind):
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**text, "image_size": 32, "patch_size": 16}
    shared = {"text_config": {**text, "vocab_size": 100, "max_position_embeddings": 8}, "vision_config": vision}
    if kind == "clip":
        model = transformers.CLIPModel(transformers.CLIPConfig(projection_dim=16, **shared))
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(**shared))
    model.eval().save_pretrained(tmp_path)
    backbone = Transformers(str(tmp_path))
    images, tokens = torch.randn(2, 3, 32, 32), torch.randint(3, 90, (2, 8))
    with torch.no_grad():
        expected = model.vision_model(pixel_values=images).pooler_output
        expected = model.visual_projection(expected) if kind == "clip" else expected
        torch.testing.assert_close(backbone.encode_image(images), expected)
        assert backbone.encode_text(tokens).isfinite().all()
    assert not any(value.is_meta for value in [*backbone.parameters(), *backbone.buffers()])


class Scaled(nn.Module):
    """Reads a value of a parameter when it is created."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.first = float(self.layer.weight[0, 0])


class Tied(nn.Module):
    """Has one parameter in two places."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        self.other.weight = self.one.weight


@pytest.mark.parametrize("kind", [Scaled, Tied])
def test_a_model_that_needs_its_values_is_built_with_random_ones(kind, tmp_path):
    model = checkpoint.without_weights(kind)
    assert not any(value.is_meta for value in model.parameters())
    weights = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    checkpoint.load_weights(model, weights, path=tmp_path, target="x", remedy="y")
    assert all(bool((value == 1).all()) for value in model.parameters())
    assert len(list(model.parameters())) == (2 if kind is Scaled else 3)


def test_an_error_of_the_constructor_stays_and_other_threads_are_left_alone():
    def refuse():
        raise DtrapError("no such layer")

    with pytest.raises(DtrapError, match="no such layer"):
        checkpoint.without_weights(refuse)
    assert not nn.Linear(2, 2).weight.is_meta
    found = []

    def build():
        thread = threading.Thread(target=lambda: found.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        return nn.Linear(2, 2)

    assert checkpoint.without_weights(build).weight.is_meta
    assert not found[0].weight.is_meta
