import copy

import peft
import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules.backbones.attention import SeparateAttention, separate_attention
from open_clip.transformer import Attention as OpenClipAttention
from open_clip.transformer import AttentionalPooler, LayerNorm, VisionTransformer
from timm.layers import AttentionRope, RotaryEmbeddingCat
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Attention as TimmAttention
from torch import nn

from .conftest import (
    assert_close,
    disturb,
    prompts_for,
    reduced_model,
    text_tower,
)

MODELS = ["ViT-B-16-quickgelu", "ViT-B-16-SigLIP2", "PE-Core-B-16"]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def separated(layer):
    """A separated copy of one attention layer."""
    holder = nn.ModuleDict({"attn": copy.deepcopy(layer)})
    assert separate_attention(holder) == ["attn"]
    return holder["attn"]


def fused_gradients(layer):
    """Gradients of the fused weight and bias, cut into those of query, key and value."""
    if hasattr(layer, "qkv"):
        return layer.qkv.weight.grad.chunk(3), layer.qkv.bias.grad.chunk(3)
    return layer.in_proj_weight.grad.chunk(3), layer.in_proj_bias.grad.chunk(3)


@pytest.mark.parametrize("name", MODELS)
def test_towers_keep_output_and_gradients(name):
    original = reduced_model(name)
    model = copy.deepcopy(original)
    names = {
        "visual": separate_attention(model.visual),
        "text": separate_attention(text_tower(model)),
    }
    images, tokens = torch.randn(2, 3, 224, 224), prompts_for(original)

    for tower, encode, inputs in [("visual", "encode_image", images), ("text", "encode_text", tokens)]:
        assert len(names[tower]) == 2
        expected, actual = getattr(original, encode)(inputs), getattr(model, encode)(inputs)
        assert_close(actual, expected)
        direction = torch.randn_like(expected)
        (expected * direction).sum().backward()
        (actual * direction).sum().backward()

        get = (lambda m: m.visual) if tower == "visual" else text_tower
        for layer_name in names[tower]:
            layer = get(model).get_submodule(layer_name)
            assert isinstance(layer, SeparateAttention)
            weights, biases = fused_gradients(get(original).get_submodule(layer_name))
            for projection, weight, bias in zip(PROJECTIONS, weights, biases, strict=False):
                assert type(getattr(layer, projection)) is nn.Linear
                assert_close(getattr(layer, projection).weight.grad, weight, 1e-4)
                # the key bias cancels in the softmax: its gradient is rounding only
                scale = max(part.abs().max() for part in biases)
                assert (getattr(layer, projection).bias.grad - bias).abs().max() <= 1e-4 * scale


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "per head"])
def test_multihead_attention_of_torch(batch_first, mask):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(32, 4, batch_first=batch_first)
    disturb(layer)
    inputs = [torch.randn(3, 6, 32) for _ in range(3)]
    causal = torch.full((6, 6), float("-inf")).triu(1)
    masks = {
        "none": None,
        "causal": causal,
        "boolean": causal.isinf(),
        "per head": torch.randn(12, 6, 6),
    }
    if not batch_first:
        inputs = [tensor.transpose(0, 1) for tensor in inputs]
    expected = layer(*inputs, need_weights=False, attn_mask=masks[mask])[0]
    actual, weights = separated(layer)(*inputs, need_weights=False, attn_mask=masks[mask])
    assert weights is None
    assert_close(actual, expected)


def test_multihead_attention_refuses_what_it_does_not_offer():
    layer, x = separated(nn.MultiheadAttention(8, 2, batch_first=True)), torch.randn(1, 3, 8)
    with pytest.raises(ValueError, match="need_weights"):
        layer(x, x, x, need_weights=True)


ROTARY = RotaryEmbeddingCat(8, in_pixels=False, feat_shape=[2, 3], ref_feat_shape=[2, 3]).get_embed()
LAYERS = {
    "timm": (TimmAttention(32, 4, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm), {}),
    "timm, inner norm": (TimmAttention(32, 4, scale_norm=True, norm_layer=nn.LayerNorm), {}),
    "timm, mask": (TimmAttention(32, 4, qkv_bias=True), {"attn_mask": torch.ones(7, 7).tril().bool()}),
    "timm, causal": (TimmAttention(32, 4, qkv_bias=True), {"is_causal": True}),
    "rotary": (AttentionRope(32, 4, num_prefix_tokens=1), {"rope": ROTARY}),
    "rotary, mask": (
        AttentionRope(32, 4, num_prefix_tokens=1),
        {"rope": ROTARY, "attn_mask": torch.randn(7, 7)},
    ),
    "rotary, separate before": (AttentionRope(32, 4, qkv_fused=False), {"rope": ROTARY}),
    "eva": (EvaAttention(32, 4, norm_layer=nn.LayerNorm), {"rope": ROTARY}),
    "open_clip": (OpenClipAttention(32, 4, qk_norm=True, inner_norm=True, norm_layer=LayerNorm), {}),
    "open_clip, mask": (OpenClipAttention(32, 4), {"attn_mask": torch.ones(7, 7).triu(1).bool()}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_attention_of_timm_and_open_clip(name):
    layer, arguments = LAYERS[name]
    torch.manual_seed(0)
    layer = layer.eval()
    disturb(layer)
    x = torch.randn(2, 7, 32)
    assert_close(separated(layer)(x, **arguments), layer(x, **arguments))


def test_dtype_mode_and_freezing_are_kept_and_no_random_number_is_drawn():
    layer = nn.MultiheadAttention(8, 2, batch_first=True).double().eval().requires_grad_(False)
    state = torch.get_rng_state()
    separate = separated(layer)
    assert torch.equal(torch.get_rng_state(), state)
    assert not separate.training
    assert {parameter.dtype for parameter in separate.parameters()} == {torch.float64}
    assert not any(parameter.requires_grad for parameter in separate.parameters())
    assert all(parameter.requires_grad for parameter in separated(nn.MultiheadAttention(8, 2)).parameters())


@pytest.mark.parametrize("layer", [nn.MultiheadAttention(8, 2, dropout=0.5), TimmAttention(8, 2, attn_drop=0.5)])
def test_dropout_is_kept(layer):
    separate, x = separated(layer), torch.randn(4, 5, 8)
    inputs = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else (x,)
    run = lambda: torch.as_tensor(separate(*inputs)[0])  # noqa: E731
    assert not torch.equal(run(), run())
    separate.eval()
    assert torch.equal(run(), run())


def test_half_precision_autocast_takes_a_float_mask():
    layer, x = separated(nn.MultiheadAttention(8, 2, batch_first=True)), torch.randn(1, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(x, x, x, attn_mask=torch.full((3, 3), float("-inf")).triu(1))
    assert output.isfinite().all()


def test_attention_pool_heads_stay():
    tower = VisionTransformer(32, 16, 32, 2, 2, 4.0, attentional_pool=True, attn_pooler_heads=2, output_dim=16)
    assert separate_attention(tower) == ["transformer.resblocks.0.attn", "transformer.resblocks.1.attn"]
    assert isinstance(tower.attn_pool, AttentionalPooler)
    assert isinstance(tower.attn_pool.attn, nn.MultiheadAttention)


class WindowAttention(nn.Module):
    pass


def test_unknown_attention_is_an_error_only_where_nothing_was_replaced():
    tower = nn.ModuleDict({"unknown": WindowAttention()})
    with pytest.raises(DtrapError, match=r"WindowAttention.*'unknown'"):
        separate_attention(tower)
    tower["known"] = nn.MultiheadAttention(8, 2)
    assert separate_attention(tower) == ["known"]
    assert separate_attention(nn.Sequential(nn.Linear(2, 2))) == []


def test_lora_gives_each_projection_an_adapter_of_its_own():
    holder = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True)})
    separate_attention(holder)
    targets = ["q_proj", "k_proj", "v_proj"]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False), holder)
    x = torch.randn(1, 3, 8)
    holder["attn"](x, x, x)[0].sum().backward()
    for target in targets:
        assert getattr(holder["attn"], target).lora_A.default.weight.grad.abs().max() > 0
