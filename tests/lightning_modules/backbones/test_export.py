"""A tuned backbone's weights by the names of the library, against new models of the library."""

import copy
import json

import open_clip
import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules.backbones import OpenCLIP, Transformers
from dtrap.lightning_modules.backbones.export import load_plain, plain_state, save_plain
from dtrap.lightning_modules.tuners import LoRA
from peft.tuners.lora import LoraLayer
from torch import nn

from .conftest import TINY, assert_close, disturb, write_config

NORMS = {"block_type": "custom", "qk_norm": True, "scale_attn_inner": True}
CONFIGS = {
    "multihead": {},
    "multihead-custom-text": {"custom_text": True},
    "own-attention": {"custom_text": True, "vision_cfg": NORMS, "text_cfg": NORMS},
    "resnet": {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 16}},
    "timm-fused": {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224}},
    "timm-rotary": {"vision_cfg": {"timm_model_name": "vit_pe_core_tiny_patch16_384", "image_size": 384}},
    "eva-fused": {"vision_cfg": {"timm_model_name": "eva02_tiny_patch14_224", "image_size": 224}},
    "eva-separate": {"vision_cfg": {"timm_model_name": "eva02_base_patch16_clip_224", "image_size": 224}},
}


def library_config(kind):
    config = copy.deepcopy(TINY)
    for key, value in CONFIGS[kind].items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    if "timm_model_name" in config["vision_cfg"]:
        timm = config["vision_cfg"]
        config["vision_cfg"] = {key: timm[key] for key in ("timm_model_name", "image_size")}
        config["vision_cfg"] |= {"timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
        config["custom_text"] = True
    return config


def library_model(config):
    config = copy.deepcopy(config)
    return (open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP)(**config).eval()


@pytest.fixture(params=CONFIGS)
def config(request):
    return library_config(request.param)


@pytest.fixture
def backbone(config, tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(config))
    torch.manual_seed(0)
    backbone = OpenCLIP(str(path), None)
    disturb(backbone)
    return backbone


def tuned(backbone, encoder):
    """LoRA with random values on the backbone."""
    tuner = LoRA(encoder, rank=4)
    tuner.attach(backbone)
    tuner.train(False)
    with torch.no_grad():
        for value in tuner.adapter_state().values():
            value.copy_(0.05 * torch.randn_like(value))
    return tuner


@pytest.mark.filterwarnings("ignore:The backbone has random weights")
def test_a_new_library_model_takes_the_state_and_gives_the_features(config, backbone):
    tuned(backbone.double(), "both" if backbone.attention_layers("vision") else "text")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    library = library_model(config).double()
    state = plain_state(backbone)
    assert state.keys() == library.state_dict().keys()
    library.load_state_dict(state)
    images = torch.randn(1, 3, backbone.image_size, backbone.image_size, dtype=torch.float64)
    tokens = backbone.tokenize(["a dog", "a photo of a cat"])
    with torch.no_grad():
        assert_close(library.encode_image(images), backbone.encode_image(images), 1e-10)
        assert_close(library.encode_text(tokens), backbone.encode_text(tokens), 1e-10)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.filterwarnings("ignore:The backbone has random weights")
@pytest.mark.parametrize("config", [library_config("multihead")])
def test_weights_are_merged_as_peft_merges_them(backbone):
    tuned(backbone, "both")
    state = plain_state(backbone)
    merged = copy.deepcopy(backbone)
    layers = {name: layer for name, layer in merged.named_modules() if isinstance(layer, LoraLayer)}
    for layer in layers.values():
        layer.merge()
    for tower in ("vision", "text"):
        for name in backbone.attention_layers(tower):
            weights = [layers[f"{name}.{part}"].get_base_layer().weight for part in ("q_proj", "k_proj", "v_proj")]
            assert torch.equal(state[f"{name.removeprefix('model.')}.in_proj_weight"], torch.cat(weights))


def test_a_checkpoint_goes_through_unchanged(tiny_files):
    config, weights, library = tiny_files
    state = plain_state(OpenCLIP(config, weights))
    assert state.keys() == library.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in library.state_dict().items())


def test_saved_and_loaded_again_with_a_tokenizer_of_its_own(tiny_files, word_tokenizer, tmp_path):
    config, weights, _ = tiny_files
    backbone = OpenCLIP(config, weights, tokenizer=word_tokenizer)
    folder = tmp_path / "exported"
    folder.mkdir()
    save_plain(backbone, folder, config)
    again = load_plain(folder)
    prompts = ["a photo of a Dog", "cat"]
    tokens = backbone.tokenize(prompts)
    assert torch.equal(again.tokenize(prompts), tokens)
    assert torch.equal(open_clip.get_tokenizer(f"local-dir:{folder}")(prompts), tokens)
    with torch.no_grad():
        assert torch.equal(again.encode_text(tokens), backbone.encode_text(tokens))
    assert (again.image_mean, again.image_std) == (backbone.image_mean, backbone.image_std)


def test_another_config_than_the_backbone_s_is_refused(tiny_files, tmp_path):
    config, weights, _ = tiny_files
    other = write_config(tmp_path, "other.json", embed_dim=16)
    with pytest.raises(DtrapError, match="cannot load the exported model"):
        save_plain(OpenCLIP(config, weights), tmp_path, other)


def test_a_backbone_of_no_library_and_a_folder_of_none_are_refused(tmp_path):
    with pytest.raises(DtrapError, match="not a backbone from open_clip or transformers"):
        save_plain(nn.Identity(), tmp_path)
    with pytest.raises(DtrapError, match="contains neither"):
        load_plain(tmp_path)


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_transformers_names_and_features(family, tmp_path):
    import transformers

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 16, "max_position_embeddings": 8, "projection_size": 16, "eos_token_id": 2}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision)
    library = getattr(transformers, f"{family}Model")(config).eval()
    disturb(library)
    library.save_pretrained(tmp_path / "model")
    backbone = Transformers(str(tmp_path / "model"))
    assert all(torch.equal(value, library.state_dict()[name]) for name, value in plain_state(backbone).items())
    tuned(backbone, "both")
    state = plain_state(backbone)
    assert state.keys() == library.state_dict().keys()
    library.load_state_dict(state)
    images, tokens = torch.randn(2, 3, 32, 32), torch.randint(3, 15, (2, 8))
    with torch.no_grad():
        image, text = library.get_image_features(pixel_values=images), library.get_text_features(input_ids=tokens)
        image, text = (getattr(features, "pooler_output", features) for features in (image, text))
        assert_close(image, backbone.encode_image(images), 1e-5)
        assert_close(text, backbone.encode_text(tokens), 1e-5)
