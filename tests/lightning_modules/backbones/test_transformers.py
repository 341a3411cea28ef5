"""CLIP and SigLIP2 of transformers: the library's own features and tokens, adapters, and what tuners hook into."""

import copy
import re
import shutil

import open_clip
import pytest
import torch
import transformers
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import Backbone, OpenCLIP, Transformers
from dtrap.lightning_modules.tuners import LoRA
from safetensors.torch import load_file, save_file
from small_backbones import SMALL

from .conftest import change, write_config

PROMPTS = ["a photo of a sea or lake", "a drawing of a Cat"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def library_model(folder):
    return transformers.AutoModel.from_pretrained(folder).eval()


def features(output):
    """Of either kind: transformers 5 wraps them."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


@torch.no_grad()
def test_features_are_those_of_the_library(folder):
    backbone, library = Transformers(str(folder)), library_model(folder)
    tokens = backbone.tokenize(PROMPTS)
    expected = features(library.get_image_features(pixel_values=IMAGES))
    assert (backbone.encode_image(IMAGES) - expected).abs().max() <= 1e-6
    expected = features(library.get_text_features(input_ids=tokens))
    assert (backbone.encode_text(tokens) - expected).abs().max() <= 1e-6
    logits = library(input_ids=tokens, pixel_values=IMAGES).logits_per_image
    bias = 0 if backbone.logit_bias is None else backbone.logit_bias
    image, text = (
        torch.nn.functional.normalize(f) for f in (backbone.encode_image(IMAGES), backbone.encode_text(tokens))
    )
    assert (image @ text.T * library.logit_scale.exp() + bias - logits).abs().max() <= 1e-5


@torch.no_grad()
def test_clip_needs_no_mask_over_its_padding(folders):
    library = library_model(folders / "clip")
    processed = transformers.AutoTokenizer.from_pretrained(folders / "clip")(PROMPTS, padding=True, return_tensors="pt")
    backbone = Transformers(str(folders / "clip"))
    expected = features(library.get_text_features(**processed))
    assert (backbone.encode_text(backbone.tokenize(PROMPTS)) - expected).abs().max() <= 1e-6


def test_facts_come_from_the_files(folder, copied):
    backbone = Transformers(str(folder))
    siglip = folder.name == "siglip"
    assert isinstance(backbone, Backbone)
    assert re.fullmatch(rf"{folder.name}-[0-9a-f]{{8}}", backbone.identifier)
    assert backbone.image_size == 32
    assert (backbone.context_length, backbone.feature_dim) == ((64, 32) if siglip else (32, 24))
    expected = (0.5, 0.5, 0.5) if siglip else open_clip.OPENAI_DATASET_MEAN
    assert backbone.image_mean == pytest.approx(expected)
    assert (backbone.logit_bias is not None) == siglip
    assert not backbone.training
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in backbone.parameters())
    (copied / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}')
    other = Transformers(str(copied))
    assert (other.image_mean, other.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    (copied / "preprocessor_config.json").unlink()
    (copied / "processor_config.json").write_text('{"image_processor": {"image_mean": [0.7, 0.8, 0.9]}}')
    assert Transformers(str(copied)).image_mean == (0.7, 0.8, 0.9)


def test_half_precision_files_and_several_files(folder, tmp_path):
    model = library_model(folder).half()
    model.save_pretrained(tmp_path / "half", max_shard_size="60KB")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    backbone = Transformers(str(tmp_path / "half"))
    assert torch.equal(backbone.token_embedding.weight, model.text_model.embeddings.token_embedding.weight.float())
    assert backbone.encode_image(IMAGES).dtype == torch.float32


def test_older_files_with_position_numbers_load(folder, tmp_path):
    old = shutil.copytree(folder, tmp_path / "old")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"text_model.embeddings.position_ids": torch.arange(9)[None]}, old / "model.safetensors")
    assert torch.equal(Transformers(str(old)).encode_image(IMAGES), Transformers(str(folder)).encode_image(IMAGES))


def test_tokens_are_those_of_the_library(folder):
    backbone = Transformers(str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = tokenizer(
        [prompt.lower() for prompt in PROMPTS],
        padding="max_length", max_length=backbone.context_length, return_tensors="pt",
    ).input_ids  # fmt: skip
    assert torch.equal(backbone.tokenize(PROMPTS), expected)


def test_clip_tokens_are_those_of_open_clip_up_to_the_padding(folders):
    prompts = ["a photo of a Sea or Lake.", "acne; it's 12 cm"]
    tokens, expected = Transformers(str(folders / "clip")).tokenize(prompts), open_clip.tokenize(prompts, 32)
    assert torch.equal(tokens.where(expected != 0, torch.tensor(0)), expected)


def test_siglip_prompts_are_canonical_and_end_with_the_end_token(folders, tmp_path):
    backbone = Transformers(str(folders / "siglip"))
    tokens = backbone.tokenize(["A photo, of a_Cat!", "a photo of a cat"])
    assert torch.equal(tokens[0], tokens[1])
    assert tokens.shape == (2, 64)
    for row in tokens:
        assert row[row != 0][-1] == 1
        assert (row[row.tolist().index(1) + 1 :] == 0).all()
    in_open_clip = SMALL["open_clip SigLIP2"](tmp_path)
    assert torch.equal(in_open_clip.tokenize(["A photo, of a_Cat!"]), tokens[:1])


def test_an_end_token_that_only_the_settings_ask_for_is_added(folders, tmp_path):
    folder = shutil.copytree(folders / "siglip", tmp_path / "siglip")
    change(folder / "tokenizer.json", post_processor=None)
    expected = Transformers(str(folders / "siglip")).tokenize(PROMPTS)
    assert torch.equal(Transformers(str(folder)).tokenize(PROMPTS), expected)


def test_too_long_prompts_are_refused(folder):
    backbone = Transformers(str(folder))
    room = backbone.context_length
    long = " ".join(["a"] * room)
    with pytest.raises(DtrapError, match=rf"'{long}' has 6?\d+ tokens, but {folder.name}-\w+ has room for {room}"):
        backbone.tokenize(["a cat", long])


def test_lora_starts_without_effect_and_alone_gets_gradients(folder):
    frozen = Transformers(str(folder))
    module = FewShotClassifier(Transformers(str(folder)), LoRA("both", dropout=0.25, projections=["q", "k", "v", "o"]))
    module.set_classes(["cat", "dog"])
    module.start_task(0)
    state = module.tuner.adapter_state()
    assert len(state) == 2 * 4 * (4 + 4)
    module.eval()
    tokens = frozen.tokenize(["a photo of a cat.", "a photo of a dog."])
    assert torch.equal(module.image_features(IMAGES), frozen.encode_image(IMAGES))
    torch.testing.assert_close(module.text_features(), frozen.encode_text(tokens))

    module.train()
    with torch.no_grad():
        for value in state.values():
            value.add_(0.1 * torch.randn_like(value))
    module(IMAGES).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in state.values())
    trained = {id(value) for value in state.values()}
    assert all(p.grad is None for p in module.parameters() if id(p) not in trained)
    assert not torch.equal(module.image_features(IMAGES), module.image_features(IMAGES))


def test_word_embeddings_stand_in_for_tokens(folder):
    backbone = Transformers(str(folder))
    tokens = backbone.tokenize(PROMPTS)
    embeddings = backbone.token_embedding(tokens).detach().requires_grad_()
    torch.testing.assert_close(backbone.encode_text_embeddings(embeddings, tokens), backbone.encode_text(tokens))
    backbone.encode_text_embeddings(embeddings, tokens)[0].sum().backward()
    assert embeddings.grad[0].abs().sum() > 0
    assert embeddings.grad[1].abs().sum() == 0


def test_tokens_can_be_appended_at_the_entrance_and_replaced_before_a_block(folder):
    backbone = Transformers(str(folder))
    patches = 16 + (folder.name == "clip")
    plain = backbone.encode_image(IMAGES)
    prompts, deeper = torch.randn(2, 1, 2, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    shapes = []

    def append(module, inputs, output):
        assert inputs[0].shape == output.shape == (3, patches, 32)
        return torch.cat([output, prompts.expand(3, 2, 32)], dim=1)

    def replace(module, inputs):
        shapes.append(inputs[0].shape)
        return (torch.cat([inputs[0][:, :-2], deeper.expand(3, 2, 32)], dim=1), *inputs[1:])

    handles = [
        backbone.image_entrance.register_forward_hook(append),
        backbone.blocks("vision")[1].register_forward_pre_hook(replace),
    ]
    prompted = backbone.encode_image(IMAGES)
    for handle in handles:
        handle.remove()
    assert shapes == [(3, patches + 2, 32)]
    assert prompted.shape == plain.shape
    assert not torch.allclose(prompted, plain, atol=1e-3)
    assert torch.equal(backbone.encode_image(IMAGES), plain)
    for given in torch.autograd.grad(prompted.sum(), (prompts, deeper)):
        assert given.abs().sum() > 0


def test_modules_are_what_the_names_say(folder):
    backbone = Transformers(str(folder))
    pooled, last, entered = [], [], []
    vision = backbone.model.vision_model
    end = vision.head if folder.name == "siglip" else vision.post_layernorm
    end.register_forward_hook(lambda module, inputs, output: pooled.append(output))
    backbone.blocks("vision")[-1].register_forward_hook(lambda module, inputs, output: last.append(output))
    twin = copy.deepcopy(backbone)
    for each in (backbone, twin):
        each.image_entrance.register_forward_hook(lambda module, inputs, output, each=each: entered.append(each))
    features = backbone.encode_image(IMAGES)
    twin.encode_image(IMAGES)
    assert entered == [backbone, twin]
    assert torch.equal(backbone.project_image(pooled[0]), features)
    assert (last[0] if isinstance(last[0], torch.Tensor) else last[0][0]).shape[::2] == (3, 32)
    assert [len(backbone.blocks(tower)) for tower in ("vision", "text")] == [4, 4]
    assert len(backbone.last_norms) == 4
    assert backbone.stages == []
    towers = [backbone.tower_parameters(tower).keys() for tower in ("vision", "text")]
    rest = {name for name, _ in backbone.named_parameters()} - towers[0] - towers[1]
    assert not towers[0] & towers[1]
    assert rest == {"model.logit_scale"} | ({"model.logit_bias"} if folder.name == "siglip" else set())
    for tower in ("vision", "text"):
        names = backbone.attention_layers(tower)
        for name, block in zip(names, backbone.blocks(tower), strict=True):
            layer = backbone.get_submodule(name)
            assert layer in list(block.modules())
            assert all(isinstance(getattr(layer, f"{x}_proj"), torch.nn.Linear) for x in ("q", "k", "v", "out"))
    assert backbone.model.state_dict().keys() == library_model(folder).state_dict().keys()


def test_both_libraries_agree_on_one_clip(folders, tmp_path):
    """The same weights, named as either library names them, give the same features."""
    library = library_model(folders / "clip")
    text = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 4, "mlp_ratio": 2.0}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 4, "mlp_ratio": 2.0}
    config = write_config(tmp_path, embed_dim=24, quick_gelu=True, text_cfg=text, vision_cfg=vision)
    with pytest.warns(UserWarning, match="random weights"):
        other = OpenCLIP(config, None)
    pairs = {
        "vision": (library.vision_model, other.model.visual.transformer),
        "text": (library.text_model, other.model.transformer),
    }
    with torch.no_grad():
        for theirs, ours in pairs.values():
            for source, target in zip(theirs.encoder.layers, ours.resblocks, strict=True):
                for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    getattr(target.attn, name).load_state_dict(getattr(source.self_attn, name).state_dict())
                for name, module in (("ln_1", source.layer_norm1), ("ln_2", source.layer_norm2)):
                    getattr(target, name).load_state_dict(module.state_dict())
                target.mlp.c_fc.load_state_dict(source.mlp.fc1.state_dict())
                target.mlp.c_proj.load_state_dict(source.mlp.fc2.state_dict())
        visual, vision_model, text_model = other.model.visual, library.vision_model, library.text_model
        visual.conv1.weight.copy_(vision_model.embeddings.patch_embedding.weight)
        visual.class_embedding.copy_(vision_model.embeddings.class_embedding)
        visual.positional_embedding.copy_(vision_model.embeddings.position_embedding.weight)
        visual.ln_pre.load_state_dict(vision_model.pre_layrnorm.state_dict())
        visual.ln_post.load_state_dict(vision_model.post_layernorm.state_dict())
        visual.proj.copy_(library.visual_projection.weight.T)
        other.model.token_embedding.weight.copy_(text_model.embeddings.token_embedding.weight)
        other.model.positional_embedding.copy_(text_model.embeddings.position_embedding.weight)
        other.model.ln_final.load_state_dict(text_model.final_layer_norm.state_dict())
        other.model.text_projection.copy_(library.text_projection.weight.T)
    backbone = Transformers(str(folders / "clip"))
    torch.testing.assert_close(backbone.encode_image(IMAGES), other.encode_image(IMAGES), atol=1e-5, rtol=1e-5)
    tokens = (backbone.tokenize(PROMPTS), other.tokenize(PROMPTS))
    torch.testing.assert_close(backbone.encode_text(tokens[0]), other.encode_text(tokens[1]), atol=1e-5, rtol=1e-5)
