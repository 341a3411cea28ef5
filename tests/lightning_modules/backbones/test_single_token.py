"""A last block that computes one token, and texts that are cut, change no feature and no gradient."""

import copy
import pickle
from functools import partial

import pytest
import torch
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import Transformers
from dtrap.lightning_modules.backbones.activations import QuickGELU
from dtrap.lightning_modules.backbones.last_block import all_tokens
from dtrap.lightning_modules.text_head import class_prompts, longest_prompt
from dtrap.lightning_modules.tuners import CoOp, LoRA, MaPLe
from small_backbones import SMALL, clip_config, clip_tokenizer, save_transformers
from small_backbones import _open_clip as build_open_clip
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import CLIPModel

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
PROMPTS = ["a photo of a cat.", "a photo of a sea or lake.", "dog"]
ONE_TOKEN = {"open_clip CLIP ViT", "transformers CLIP", "timm ViT", "EVA"}


@register_model
def vit_small_token(num_classes=0, global_pool="token", **_):
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, init_values=0.5, num_classes=num_classes,
        global_pool=global_pool,
    )  # fmt: skip


@register_model
def eva_small_token(num_classes=0, global_pool="token", **_):
    return Eva(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, use_rot_pos_emb=True, ref_feat_shape=(4, 4),
        init_values=0.5, swiglu_mlp=True, scale_mlp=True, global_pool=global_pool, num_classes=num_classes,
    )  # fmt: skip


def of_timm(model, folder):
    """A CLIP whose image tower is a class-token tower of timm, as EVA's."""
    vision = {"timm_model_name": model, "timm_pool": "token", "timm_proj": None, "image_size": 32}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return build_open_clip(model, {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, folder)


EVERY = {**SMALL, "timm ViT": partial(of_timm, "vit_small_token"), "EVA": partial(of_timm, "eva_small_token")}


@pytest.fixture(params=EVERY, scope="module")
def named(request, tmp_path_factory):
    return request.param, EVERY[request.param](tmp_path_factory.mktemp("backbone")).double()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return SMALL["open_clip CLIP ViT"](tmp_path_factory.mktemp("clip")).double()


def images_of(backbone):
    return nn.functional.interpolate(IMAGES, size=backbone.image_size)


def mlp_rows(backbone, tower, run):
    """The tokens per row that the second norm of the last block gets, seen without a hook, which would stop the cut."""
    block, seen = backbone.blocks(tower)[-1], []
    name = next(name for name in ("ln_2", "norm2", "layer_norm2") if hasattr(block, name))
    norm = getattr(block, name)
    norm.forward = lambda x: seen.append(x.shape[1]) or type(norm).forward(norm, x)
    try:
        run()
    finally:
        del norm.forward
    return seen


def gradients(backbone, tower, encode):
    """The features, and the gradients of all of a tower's parameters that a loss on them has."""
    parameters = list(backbone.tower_parameters(tower).values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    features = encode()
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).double()
    found = torch.autograd.grad((features * weights).sum(), parameters, allow_unused=True)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return features, [
        grad if grad is not None else torch.zeros_like(p) for grad, p in zip(found, parameters, strict=True)
    ]


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], atol=1e-12, rtol=1e-10)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


def test_image_features_and_gradients_are_those_of_all_tokens(named):
    name, backbone = named
    images = images_of(backbone)
    with all_tokens():
        expected = gradients(backbone, "vision", lambda: backbone.encode_image(images))
    assert_same(gradients(backbone, "vision", lambda: backbone.encode_image(images)), expected)
    if backbone.blocks("vision"):
        (tokens,) = mlp_rows(backbone, "vision", lambda: backbone.encode_image(images))
        assert (tokens == 1) == (name in ONE_TOKEN)


def test_cut_texts_have_the_features_and_gradients_of_whole_ones(named):
    name, backbone = named
    tokens = backbone.tokenize(PROMPTS)
    cut = backbone.cut_text(tokens)
    assert backbone.cuts_text == ("SigLIP" not in name) == (cut.shape[1] < tokens.shape[1])
    whole = gradients(backbone, "text", lambda: backbone.encode_text(tokens))
    assert_same(gradients(backbone, "text", lambda: backbone.encode_text(cut)), whole)
    if backbone.cuts_text:
        longer = tokens[:, : cut.shape[1] + 2]
        assert_same(gradients(backbone, "text", lambda: backbone.encode_text(longer)), whole)
        with all_tokens():
            assert_same(gradients(backbone, "text", lambda: backbone.encode_text(cut)), whole)
        assert mlp_rows(backbone, "text", lambda: backbone.encode_text(cut)) == [1]


def test_an_older_config_reads_the_highest_token(tmp_path):
    clip_tokenizer(tmp_path)
    save_transformers(tmp_path, clip_config(eos_token_id=2), CLIPModel)
    backbone = Transformers(str(tmp_path)).double()
    tokens = backbone.tokenize(PROMPTS)
    cut = backbone.cut_text(tokens)
    assert cut.shape[1] == 10
    torch.testing.assert_close(backbone.encode_text(cut), backbone.encode_text(tokens), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("watch", ["block", "norm", "attention", "tower", "ln_post", "gradient"])
def test_a_hook_sees_all_tokens(clip, watch):
    block, visual, seen = clip.blocks("vision")[-1], clip.model.visual, []
    module = {"block": block, "norm": block.ln_2, "attention": block.attn.q_proj, "ln_post": visual.ln_post}
    module |= {"tower": visual.transformer, "gradient": block}
    expected = clip.encode_image(IMAGES)
    if watch == "gradient":
        handle = block.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0].shape[1]))
    else:
        handle = module[watch].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with handle:
        features = clip.encode_image(IMAGES.clone().requires_grad_())
        if watch == "gradient":
            features.sum().backward()
    assert seen == [17]
    torch.testing.assert_close(features, expected)
    assert mlp_rows(clip, "vision", lambda: clip.encode_image(IMAGES)) == [1]


def test_blocks_called_by_others_return_all_tokens(clip):
    visual = clip.model.visual
    assert visual.transformer(torch.randn(2, 17, 32).double()).shape == (2, 17, 32)
    clip.model.visual.set_grad_checkpointing(True)
    try:
        assert mlp_rows(clip, "vision", lambda: clip.encode_image(IMAGES)) == [17]
    finally:
        clip.model.visual.set_grad_checkpointing(False)


def test_copies_and_pickles_cut_too(clip):
    expected = clip.encode_image(IMAGES)
    for other in (copy.deepcopy(clip), pickle.loads(pickle.dumps(clip))):
        torch.testing.assert_close(other.encode_image(IMAGES), expected)
        assert mlp_rows(other, "vision", lambda other=other: other.encode_image(IMAGES)) == [1]
        assert mlp_rows(clip, "vision", lambda other=other: other.encode_image(IMAGES)) == []


@pytest.mark.parametrize("tuner", [partial(LoRA, encoder="text"), partial(CoOp, 3), MaPLe])
def test_a_trained_text_tower_encodes_as_many_tokens_as_the_data_sets_longest_prompt(clip, tuner):
    module = FewShotClassifier(copy.deepcopy(clip), tuner()).double()
    names = ["cat", "dog", "a very long name of a sea or lake"]
    features, lengths = {}, {}

    def watch(block, inputs):
        lengths[known] = inputs[0].shape[1]

    with module.backbone.blocks("text")[0].register_forward_pre_hook(watch):
        for known in (False, True):
            module.set_classes(names[:2], data_set=names if known else ())
            module.tuner.reset(0, 2)
            features[known] = module.text_features()
    assert lengths[True] == lengths[False] + 8 < 32
    torch.testing.assert_close(features[True], features[False])


def test_the_length_in_use_survives_names_that_are_too_long(clip):
    assert longest_prompt(clip, ()) == 0
    assert longest_prompt(clip, PROMPTS) == 10
    assert longest_prompt(clip, [*PROMPTS, "word " * 40]) == clip.context_length
    prompts = class_prompts(["cat", "sea or lake"], "a photo of a {}.", clip).measured(clip)
    assert (prompts.lengths, prompts.length) == ((8, 10), 10)
    assert prompts.used_tokens.shape == (2, 10)


def test_quick_gelu_is_exact(clip):
    assert any(isinstance(module, QuickGELU) for module in clip.modules())
    x = torch.linspace(-30, 30, 1001, dtype=torch.float64, requires_grad=True)
    expected = x * torch.sigmoid(1.702 * x)
    torch.testing.assert_close(QuickGELU()(x), expected, atol=1e-14, rtol=1e-12)
    both = [torch.autograd.grad(y.sum(), x)[0] for y in (QuickGELU()(x), x * torch.sigmoid(1.702 * x))]
    torch.testing.assert_close(*both, atol=1e-14, rtol=1e-12)
    few = x.detach()[::100].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(QuickGELU(), few)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda one: QuickGELU()(one)))(few), both[0][::100])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_works_with_one_token(clip, dtype):
    backbone = copy.deepcopy(clip).float()
    tokens = backbone.cut_text(backbone.tokenize(PROMPTS))
    with torch.autocast("cpu", dtype):
        image, text = backbone.encode_image(IMAGES.float()), backbone.encode_text(tokens)
    torch.testing.assert_close(image.double(), clip.encode_image(IMAGES), atol=0.05, rtol=0.05)
    torch.testing.assert_close(text.double(), clip.encode_text(tokens), atol=0.05, rtol=0.05)
