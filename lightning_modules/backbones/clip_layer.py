"""The last layer of a CLIP tower of transformers, computed for one token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from .last_block import LastBlock, given_keys


class LastClipLayer(LastBlock, CLIPEncoderLayer):
    """transformers' layer."""

    norm_name = "layer_norm1"


class LastClipAttention(CLIPAttention):
    """transformers' attention, which can take its keys from other tokens than its queries."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the output [B, L, C] of tokens [B, L, C], and weights or None."""
        given = given_keys()
        if given is None:
            return super().forward(hidden_states, *args, **kwargs)
        inputs = ((self.q_proj, hidden_states), (self.k_proj, given.tokens), (self.v_proj, given.tokens))
        q, k, v = (layer(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer, tokens in inputs)
        dropout = self.dropout if self.training else 0.0
        heads = functional.scaled_dot_product_attention(q, k, v, given.mask(), dropout_p=dropout, scale=self.scale)
        return self.out_proj(heads.transpose(1, 2).flatten(2)), None


def prepare_clip_layer(layers: Sequence[nn.Module]) -> nn.Module | None:
    """Let the last layer compute single tokens, in place; return it, or None for another kind of layer."""
    layer: Any = layers[-1] if layers else None
    if type(layer) is not CLIPEncoderLayer or type(layer.self_attn) is not CLIPAttention:
        return None
    layer.__class__, layer.self_attn.__class__ = LastClipLayer, LastClipAttention
    return layer
