"""Relevance maps against attention that is written out here."""

import math

import numpy as np
import open_clip
import pytest
import torch
from conftest import TINY
from dtrap.errors import DtrapError
from dtrap.lightning_modules.backbones.attention import separate_attention
from dtrap.metrics import gradient_relevance, patch_text_relevance
from small_backbones import open_clip_pe_core, transformers_clip, transformers_siglip2
from torch import nn
from torch.nn import functional as F

KINDS = ["query+key", "query", "key", "value"]


@pytest.fixture(scope="module")
def clip():
    """open_clip's own CLIP with the fused `nn.MultiheadAttention`, 2x2 patches."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY).eval()
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def softmax(scores):
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def layer_norm(x, layer):
    weight, bias = layer.weight.numpy(), layer.bias.numpy()
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps) * weight + bias


def cosines(features, texts):
    features, texts = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (features, texts))
    return features @ texts.T


def expected_cosines(clip, images, texts, kind):
    """SCLIP's last block in NumPy, head by head: [B, W, 2, 2]."""
    block, inputs = clip.visual.transformer.resblocks[-1], []
    with block.register_forward_pre_hook(lambda module, given: inputs.append(given[0].numpy())):
        clip.encode_image(images)
    [x] = inputs
    normed = layer_norm(x, block.ln_1)
    weight, bias = block.attn.in_proj_weight.numpy(), block.attn.in_proj_bias.numpy()
    q, k, v = np.split(normed @ weight.T + bias, 3, axis=-1)
    heads, width = [], x.shape[-1] // block.attn.num_heads
    for head in range(block.attn.num_heads):
        part = {name: of[..., head * width : (head + 1) * width] for name, of in zip("qkv", (q, k, v), strict=True)}
        tokens = {"query+key": "qk", "query": "q", "key": "k", "value": "v"}[kind]
        attention = sum(softmax(part[t] @ part[t].swapaxes(1, 2) / math.sqrt(width)) for t in tokens)
        heads.append(attention @ part["v"])
    out = block.attn.out_proj
    x = x + np.concatenate(heads, axis=-1) @ out.weight.numpy().T + out.bias.numpy()
    hidden = layer_norm(x, block.ln_2) @ block.mlp.c_fc.weight.numpy().T + block.mlp.c_fc.bias.numpy()
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    x = x + hidden @ block.mlp.c_proj.weight.numpy().T + block.mlp.c_proj.bias.numpy()
    features = layer_norm(x[:, 1:], clip.visual.ln_post) @ clip.visual.proj.numpy()  # without the class token
    return cosines(features, texts.numpy()).transpose(0, 2, 1).reshape(len(images), len(texts), 2, 2)


@pytest.mark.parametrize("separate", [False, True], ids=["fused", "separate"])
@pytest.mark.parametrize("kind", KINDS)
def test_cosines_of_patches_are_those_of_sclip_in_numpy(clip, kind, separate):
    images, texts = torch.randn(3, 3, 32, 32), torch.randn(4, 16)
    expected = expected_cosines(clip, images, texts, kind)
    model = clip
    if separate:
        model = open_clip.CLIP(**TINY).eval()
        model.load_state_dict(clip.state_dict())
        separate_attention(model.visual)
    found = patch_text_relevance(model.encode_image, model.visual.transformer.resblocks, images, texts, similarity=kind)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@torch.no_grad()
def test_an_attention_pool_sees_one_patch_at_a_time(tmp_path):
    """Of one token, the pool's attention is 1: its value goes through the projection and the MLP."""
    backbone = transformers_siglip2(tmp_path)
    vision, last = backbone.model.vision_model, backbone.blocks("vision")[-1]
    images, texts, normed = torch.randn(2, 3, 32, 32), torch.randn(3, 32), []
    found = patch_text_relevance(backbone.encode_image, backbone.blocks("vision"), images, texts, similarity="key")
    with last.layer_norm1.register_forward_hook(lambda module, given, output: normed.append((given[0], output))):
        backbone.encode_image(images)
    [(x, y)] = normed
    attention, pool = last.self_attn, vision.head.attention
    k, v = (layer(y).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (attention.k_proj, attention.v_proj))
    heads = (k @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1) @ v
    x = x + attention.out_proj(heads.transpose(1, 2).flatten(2))
    x = vision.post_layernorm(x + last.mlp(last.layer_norm2(x)))
    pooled = pool.out_proj(F.linear(x, pool.in_proj_weight[64:], pool.in_proj_bias[64:]))
    features = pooled + vision.head.mlp(vision.head.layernorm(pooled))
    expected = F.normalize(features, dim=-1) @ F.normalize(texts, dim=-1).T
    torch.testing.assert_close(found, expected.transpose(1, 2).unflatten(-1, (4, 4)), atol=1e-5, rtol=1e-4)


class Block(nn.Module):
    """A block with attention of two heads and nothing else; it can keep its attention, as in Chefer et al.'s code."""

    def __init__(self, width=8):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.kept = None

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        if self.kept is None:
            heads = F.scaled_dot_product_attention(q, k, v)
        else:
            self.kept = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
            self.kept.retain_grad()
            heads = self.kept @ v
        return x + self.out(heads.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Patches of 4 pixels, a class token, blocks; the feature is the class token, a mean, or an attention pool."""

    def __init__(self, blocks, read):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(8))
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        self.read = read
        self.latent, self.kv, self.kept = nn.Parameter(torch.randn(8)), nn.Linear(8, 16), None

    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = self.blocks(torch.cat([self.token.expand(len(images), 1, -1), patches], dim=1))
        if self.read == "class token":
            return x[:, 0]
        if self.read == "mean":
            return x[:, 1:].mean(dim=1)
        k, v = (part[:, None] for part in self.kv(x).chunk(2, dim=-1))
        q = self.latent.expand(len(images), 1, 1, -1)
        if self.kept is None:
            return F.scaled_dot_product_attention(q, k, v)[:, 0, 0]
        self.kept = (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
        self.kept.retain_grad()
        return (self.kept @ v)[:, 0, 0]


def test_the_rule_on_one_block_by_hand():
    """The score is linear in the attention, so its gradient is known: dscore/dA[h, 0, s] = v_h[s] . (W_h^T t)."""
    torch.manual_seed(1)
    model, images, text = Transformer(1, "class token").requires_grad_(False), torch.randn(2, 3, 8, 12), torch.randn(8)
    block, inputs = model.blocks[0], []
    with block.register_forward_pre_hook(lambda module, given: inputs.append(given[0].numpy())):
        model(images)
    qkv = inputs[0] @ block.qkv.weight.numpy().T + block.qkv.bias.numpy()
    expected = np.zeros((2, 7))
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        q, k, v = (part[..., rows] for part in np.split(qkv, 3, axis=-1))
        of_class_token = softmax(q[:, :1] @ k.swapaxes(1, 2) / 2)[:, 0]
        gradient = v @ (block.out.weight.numpy()[:, rows].T @ text.numpy())
        expected += np.maximum(of_class_token * gradient, 0) / 2
    found = gradient_relevance(lambda part: model(part) @ text, model.blocks, images)
    assert found.shape == (2, 2, 3)
    np.testing.assert_allclose(found.flatten(1).numpy(), expected[:, 1:], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("first", [0, 1, -1])
@pytest.mark.parametrize("read", ["class token", "mean", "attention pool"])
def test_the_rule_on_three_blocks_with_attention_that_is_kept(read, first):
    torch.manual_seed(2)
    model, images, text = Transformer(3, read), torch.randn(2, 3, 8, 12), torch.randn(8)
    found = gradient_relevance(lambda part: model(part) @ text, model.blocks, images, first_block=first)
    assert all(parameter.grad is None for parameter in model.parameters())
    for module in [model, *model.blocks]:
        module.kept = True
    (model(images) @ text).sum().backward()
    for image in range(2):
        relevance = np.eye(7)
        for block in list(model.blocks)[first:]:
            weighted = (block.kept.grad[image] * block.kept.detach()[image]).clamp(min=0).mean(dim=0).numpy()
            relevance = relevance + weighted @ relevance
        if read == "class token":
            expected = relevance[0]
        elif read == "mean":
            expected = relevance[1:].mean(axis=0)
        else:
            own = relevance - np.eye(7)
            shares = np.array([row / row.sum() if row.sum() > 0 else row for row in own]) + np.eye(7)
            expected = (model.kept.grad[image] * model.kept.detach()[image]).clamp(min=0)[0, 0].numpy() @ shares
        np.testing.assert_allclose(found[image].flatten().numpy(), expected[1:], rtol=1e-4, atol=1e-6)
    assert found.max() > 0


def test_maps_work_in_inference_mode_and_leave_the_model_as_it_was(clip):
    images, texts = torch.randn(2, 3, 32, 32), torch.randn(2, 16)
    blocks, before = clip.visual.transformer.resblocks, clip.encode_image(images)

    def score(part):
        return clip.encode_image(part) @ texts[0]

    plain = gradient_relevance(score, blocks, images)
    with torch.inference_mode():
        inside = images + 0
        patch_text_relevance(clip.encode_image, blocks, inside, texts)
        found = gradient_relevance(score, blocks, inside)
    assert torch.equal(found, plain)
    assert torch.equal(clip.encode_image(images), before)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


def test_a_failed_map_leaves_no_hooks(clip):
    blocks = clip.visual.transformer.resblocks

    def broken(part):
        clip.encode_image(part)
        raise ValueError("later")

    with pytest.raises(ValueError, match="later"):
        patch_text_relevance(broken, blocks, torch.randn(1, 3, 32, 32), torch.randn(2, 16))
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


def test_rotary_positions_and_a_pool_with_a_class_token(tmp_path):
    backbone = open_clip_pe_core(tmp_path)
    blocks, images, texts = backbone.blocks("vision"), torch.randn(2, 3, 32, 32), torch.randn(3, 24)
    found = patch_text_relevance(backbone.encode_image, blocks, images, texts)
    assert found.shape == (2, 3, 4, 4)
    relevance = gradient_relevance(lambda part: backbone.encode_image(part) @ texts[0], blocks, images)
    assert relevance.shape == (2, 4, 4)
    assert relevance.min() >= 0
    assert relevance.max() > 0


def test_attention_that_cannot_be_seen_and_other_mistakes(clip, tmp_path):
    images, texts, blocks = torch.randn(1, 3, 32, 32), torch.randn(2, 16), clip.visual.transformer.resblocks
    with pytest.raises(DtrapError, match="a ResNet or another convolutional network has none"):
        patch_text_relevance(clip.encode_image, [], images, texts)
    with pytest.raises(DtrapError, match="similarity is 'cosine'; expected one of query"):
        patch_text_relevance(clip.encode_image, blocks, images, texts, similarity="cosine")
    with pytest.raises(DtrapError, match=r"first_block is 2; expected -2 to 1"):
        gradient_relevance(lambda part: clip.encode_image(part)[:, 0], blocks, images, first_block=2)
    with pytest.raises(DtrapError, match=r"grid of 3x3 patches is larger than the 5 tokens"):
        patch_text_relevance(clip.encode_image, blocks, images, texts, grid=(3, 3))
    with pytest.raises(DtrapError, match="width 16 and the texts 8; expected one width"):
        patch_text_relevance(clip.encode_image, blocks, images, texts[:, :8])
    with pytest.raises(DtrapError, match="ran 0 of its 2 blocks"):
        patch_text_relevance(lambda part: torch.ones(4, 16), blocks, images, texts)
    with pytest.raises(DtrapError, match="expected each block once"):
        gradient_relevance(lambda part: (clip.encode_image(part) + clip.encode_image(part))[:, 0], blocks, images)
    with pytest.raises(DtrapError, match=r"score returned \[1, 16\]; expected a number for each of 1 images"):
        gradient_relevance(clip.encode_image, blocks, images)
    slow = transformers_clip(tmp_path)
    slow.model.set_attn_implementation("eager")
    with pytest.raises(DtrapError, match=r"computes its attention in its own way; .*set_attn_implementation\('sdpa'\)"):
        patch_text_relevance(slow.encode_image, slow.blocks("vision"), images, torch.randn(2, 24))
