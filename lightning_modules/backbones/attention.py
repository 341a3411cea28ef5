"""Attention with separate Linear layers for queries, keys, values and output, instead of a fused projection.

peft's LoRA adapts whole Linear layers. With a fused projection q, k and v cannot have separate adapters, and on
`nn.MultiheadAttention` LoRA's dropout has no effect. Here the fused weight is split into three, which does not change
the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from open_clip.modified_resnet import AttentionPool2d as ResNetAttentionPool
from open_clip.transformer import Attention as OpenClipAttention
from open_clip.transformer import AttentionalPooler
from timm.layers import AttentionPool2d, AttentionPoolLatent, AttentionRope, RotAttentionPool2d
from timm.layers import apply_rot_embed_cat as rotate
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Attention as TimmAttention
from torch import Tensor, nn
from torch.nn import functional

from ...errors import DtrapError
from .last_block import given_keys

POOL_HEADS = (
    AttentionalPooler,
    AttentionPoolLatent,
    AttentionPool2d,
    RotAttentionPool2d,
    ResNetAttentionPool,
)


class SeparateAttention(nn.Module):
    """Multi-head scaled-dot-product attention with four separate Linear projections.

    The `forward` of a subclass has the arguments of the layer that it replaces. The attributes are neutral at first.

    Args:
        projections: Linear layers for queries, keys, values and output.
        num_heads: Number of heads H.
        dropout: Dropout rate of the attention weights.

    Attributes:
        num_kv_heads: Number of key and value heads (fewer than H for grouped queries).
        q_norm: Norm of the queries, per head.
        k_norm: Norm of the keys, per head.
        inner_norm: Norm before the output projection.
        gate: Projection of the input whose sigmoid multiplies the input of the output projection, or None.
        out_dropout: Dropout after the output projection.
        rotated_from: Number of prefix tokens without rotary position.
        rotate_half: Whether the rotary layout is "half" instead of "interleaved".
        fused_as: Name, up to "weight" and "bias", of the one projection for queries, keys and values in the layer that
            this one replaces; None if that layer has three.
        replaced_names: This layer's submodules with other names in the layer that it replaces.
    """

    rotated_from: int = 0
    rotate_half: bool = False
    fused_as: str | None = "in_proj_"
    replaced_names: ClassVar[dict[str, str]] = {}

    def __init__(self, projections: Iterable[nn.Linear], num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = projections
        self.num_heads = self.num_kv_heads = num_heads
        self.dropout = dropout
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        self.inner_norm: nn.Module = nn.Identity()
        self.gate: nn.Module | None = None
        self.out_dropout: nn.Module = nn.Identity()

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Compute the attention of queries [B, L, C] to keys and values [B, S, C]: [B, L, C].

        Args:
            query: Input of the query projection.
            key: Input of the key projection.
            value: Input of the value projection.
            rope: Rotary position embedding for timm's `apply_rot_embed_cat`.
            attn_mask: Broadcastable to [B, H, L, S]: True where attention is allowed, or values to add.
            is_causal: Each position attends to itself and earlier ones; excludes `attn_mask`.
        """
        given = given_keys()
        if given is not None:
            key = value = given.tokens
            attn_mask, is_causal = given.mask(), False
        q = self.q_norm(self._heads(self.q_proj(query), self.num_heads))
        k = self.k_norm(self._heads(self.k_proj(key), self.num_kv_heads))
        v = self._heads(self.v_proj(value), self.num_kv_heads)
        if rope is not None:
            q = q if given is not None else self._rotated(q, rope).type_as(v)
            k = self._rotated(k, rope).type_as(v)
        if self.num_kv_heads != self.num_heads:
            groups = self.num_heads // self.num_kv_heads
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            attn_mask = attn_mask.to(q.dtype)
        heads = functional.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p=self.dropout if self.training else 0.0, is_causal=is_causal
        )
        output = self.inner_norm(heads.transpose(1, 2).flatten(2))
        if self.gate is not None:
            output = output * self.gate(query).sigmoid()
        return self.out_dropout(self.out_proj(output))

    def _heads(self, projected: Tensor, num_heads: int) -> Tensor:
        """Split [B, L, H*d] into heads [B, H, L, d]."""
        return projected.unflatten(-1, (num_heads, -1)).transpose(1, 2)

    def _rotated(self, heads: Tensor, rope: Tensor) -> Tensor:
        """Rotate the N tokens after the prefix of heads [B, H, L, d] with rope [..., N, 2d]; later tokens stay."""
        positions = rope.shape[-2]
        sizes = [self.rotated_from, positions, heads.shape[2] - self.rotated_from - positions]
        prefix, placed, appended = heads.split(sizes, dim=2)
        return torch.cat([prefix, rotate(placed, rope, half=self.rotate_half), appended], dim=2)


class SeparateMultiheadAttention(SeparateAttention):
    """Replacement of `nn.MultiheadAttention` in open_clip's `ResidualAttentionBlock`."""

    batch_first: bool = True

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        *,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Return an output in the shape of `query`, [B, L, C] or [L, B, C] without `batch_first`, and None as weights.

        Args:
            query: Queries.
            key: Keys.
            value: Values.
            key_padding_mask: Not supported.
            need_weights: Not supported.
            attn_mask: [L, S] or [B*H, L, S]; True where attention is forbidden (torch's rule for this layer),
                or values to add.
            is_causal: Only a hint if `attn_mask` is given, as in `nn.MultiheadAttention`.

        Raises:
            ValueError: Attention weights are requested, or a padding mask is given.
        """
        if need_weights or key_padding_mask is not None:
            raise ValueError("SeparateMultiheadAttention supports neither need_weights nor key_padding_mask")
        if not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        mask = _allowed(attn_mask, self.num_heads)
        output = self.attend(query, key, value, attn_mask=mask, is_causal=is_causal and mask is None)
        return output if self.batch_first else output.transpose(0, 1), None


class SeparateOpenClipAttention(SeparateAttention):
    """Replacement of open_clip's own `Attention` in its `CustomResidualAttentionBlock`."""

    replaced_names: ClassVar = {"q_norm": "ln_q", "k_norm": "ln_k", "inner_norm": "ln_inner"}

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Return the output [B, L, C] of tokens [B, L, C]; True in a mask [L, L] or [B*H, L, L] forbids attention."""
        return self.attend(x, x, x, attn_mask=_allowed(attn_mask, self.num_heads))


class SeparateTimmAttention(SeparateAttention):
    """Replacement of timm's `Attention`, `AttentionRope` and `EvaAttention`."""

    fused_as: str | None = "qkv."
    replaced_names: ClassVar = {"out_proj": "proj", "inner_norm": "norm"}

    def forward(
        self,
        x: Tensor,
        *,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return the output [B, L, C] of tokens [B, L, C]; a boolean mask is True where attention is allowed."""
        return self.attend(x, x, x, rope=rope, attn_mask=attn_mask, is_causal=is_causal)


def separate_attention(module: nn.Module) -> list[str]:
    """Replace every attention layer in `module` by a `SeparateAttention` with the same weights, in place.

    Attention-pool heads (timm's `AttentionPoolLatent`, open_clip's `AttentionalPooler` and others) are kept.

    Returns:
        Dotted names of the replaced layers within `module`, in order; empty for a tower without attention blocks, such
        as a ResNet.

    Raises:
        DtrapError: There are attention layers, but none could be replaced; the message names their class.
    """
    names, unknown = [], {}
    for name, parent, child in list(_descendants(module)):
        convert = _CONVERTERS.get(type(child))
        separate = convert(child) if convert is not None else None
        if separate is not None:
            setattr(parent, name.rpartition(".")[2], separate.train(child.training))
            names.append(name)
        elif "attention" in type(child).__name__.lower():
            unknown[type(child)] = name
    if unknown and not names:
        kind, name = next(reversed(unknown.items()))
        raise DtrapError(
            f"{type(module).__name__}: its attention layers are {kind.__module__}.{kind.__name__} (such as '{name}'), "
            "which cannot be split into query, key and value layers. Use a model whose blocks have "
            "nn.MultiheadAttention or timm's Attention, such as ViT-B-16-quickgelu."
        )
    return names


def _descendants(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield name, parent and module of all descendants of `module`, except those of attention-pool heads."""
    for attribute, child in module.named_children():
        if not isinstance(child, POOL_HEADS):
            yield prefix + attribute, module, child
            yield from _descendants(child, f"{prefix}{attribute}.")


def _allowed(mask: Tensor | None, num_heads: int) -> Tensor | None:
    """Convert a mask [L, S] or [B*H, L, S] that forbids where True to one that broadcasts and allows where True."""
    if mask is None:
        return None
    if mask.ndim == 3:
        mask = mask.unflatten(0, (-1, num_heads))
    return ~mask if mask.dtype == torch.bool else mask


def _linear(weight: Tensor, bias: Tensor | None, requires_grad: bool) -> nn.Linear:
    """Return a Linear layer with a copy of the weight."""
    # The meta device draws no random numbers for the new layer; they would change all later draws.
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad)
    return layer


def _cut(weight: Tensor, bias: Tensor | None) -> list[nn.Linear]:
    """Split a fused weight [3*H*d, C] into query, key and value layers."""
    biases = (None, None, None) if bias is None else bias.chunk(3)
    parts = zip(weight.chunk(3), biases, strict=True)
    return [_linear(part, part_bias, weight.requires_grad) for part, part_bias in parts]


def _from_multihead(layer: nn.MultiheadAttention) -> SeparateAttention | None:
    # Private in torch: the only attribute that shows whether the three weights are fused.
    if not layer._qkv_same_embed_dim or layer.bias_k is not None or layer.add_zero_attn:
        return None
    projections = [*_cut(layer.in_proj_weight, layer.in_proj_bias), layer.out_proj]
    separate = SeparateMultiheadAttention(projections, layer.num_heads, layer.dropout)
    separate.batch_first = layer.batch_first
    return separate


def _from_open_clip(layer: OpenClipAttention) -> SeparateAttention | None:
    if layer.logit_scale is not None or layer.head_scale is not None:
        return None
    projections = [*_cut(layer.in_proj_weight, layer.in_proj_bias), layer.out_proj]
    separate = SeparateOpenClipAttention(projections, layer.num_heads, layer.attn_drop.p)
    separate.q_norm, separate.k_norm, separate.inner_norm = layer.ln_q, layer.ln_k, layer.ln_inner
    separate.out_dropout = layer.out_drop
    return separate


def _from_timm(layer: Any) -> SeparateAttention:
    """Convert any of timm's three; attributes that older versions or the basic class lack get neutral values."""
    if layer.qkv is None:
        query, key, value = layer.q_proj, layer.k_proj, layer.v_proj
    else:
        query, key, value = _cut(layer.qkv.weight, layer.qkv.bias)
    if getattr(layer, "q_bias", None) is not None:
        query = _linear(query.weight, layer.q_bias, query.weight.requires_grad)
        value = _linear(value.weight, layer.v_bias, value.weight.requires_grad)
    separate = SeparateTimmAttention([query, key, value, layer.proj], layer.num_heads, layer.attn_drop.p)
    separate.q_norm, separate.k_norm, separate.inner_norm = layer.q_norm, layer.k_norm, layer.norm
    separate.num_kv_heads = getattr(layer, "num_kv_heads", None) or layer.num_heads
    separate.gate = getattr(layer, "gate", None)
    separate.out_dropout = layer.proj_drop
    separate.rotated_from = getattr(layer, "num_prefix_tokens", 0)
    separate.rotate_half = getattr(layer, "rotate_half", False)
    separate.fused_as = None if layer.qkv is None else "qkv."
    return separate


_CONVERTERS: dict[type, Callable[..., SeparateAttention | None]] = {
    nn.MultiheadAttention: _from_multihead,
    OpenClipAttention: _from_open_clip,
    TimmAttention: _from_timm,
    AttentionRope: _from_timm,
    EvaAttention: _from_timm,
}
