"""The tokens that the pooling of open_clip's towers reads, and the last blocks that compute them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import (
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    TextTransformer,
    VisionTransformer,
)
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from .attention import SeparateAttention
from .last_block import LastBlock


class LastResidualAttentionBlock(LastBlock, ResidualAttentionBlock):
    """open_clip's block."""

    norm_name = "ln_1"


class LastCustomResidualAttentionBlock(LastBlock, CustomResidualAttentionBlock):
    """open_clip's block with norms of queries and keys."""

    norm_name = "ln_1"


class LastTimmBlock(LastBlock, Block):
    """timm's block."""

    norm_name = "norm1"


class LastEvaBlock(LastBlock, EvaBlock):
    """timm's block of EVA."""

    norm_name = "norm1"


_KINDS: dict[type, type[LastBlock]] = {
    ResidualAttentionBlock: LastResidualAttentionBlock,
    CustomResidualAttentionBlock: LastCustomResidualAttentionBlock,
    Block: LastTimmBlock,
    EvaBlock: LastEvaBlock,
}


def prepare_last_block(blocks: Sequence[nn.Module]) -> nn.Module | None:
    """Let the last block compute single tokens, in place; return it, or None if it cannot.

    Only the class of the block changes, to a subclass; parameters, names and hooks stay.
    """
    block: Any = blocks[-1] if blocks else None
    kind = _KINDS.get(type(block))
    if kind is None or not isinstance(block.attn, SeparateAttention):
        return None
    block.__class__ = kind
    return block


def reads_class_token(visual: nn.Module) -> bool:
    """Return whether the feature depends on the first token behind the last block alone, and nothing else is returned.

    With activation checkpointing inside the tower, blocks run again outside of the call, so it counts as False.
    """
    tower: Any = visual
    if isinstance(tower, VisionTransformer):
        layers = tower.transformer
        pools = tower.attn_pool is None and tower.pool_type == "tok" and not tower.output_tokens
        return pools and layers.batch_first and not layers.grad_checkpointing
    if isinstance(tower, TimmModel) and type(tower.trunk) in (TimmVisionTransformer, Eva):
        trunk: Any = tower.trunk
        pools = trunk.global_pool == "token" and trunk.attn_pool is None and not trunk.grad_checkpointing
        # A class token with a rotary position of its own would need it in the last block.
        return pools and (getattr(trunk, "rope", None) is None or trunk.blocks[-1].attn.rotated_from > 0)
    return False


def behind_blocks(visual: nn.Module) -> list[nn.Module]:
    """Return the modules behind the last block that get or return tokens."""
    tower: Any = visual
    if isinstance(tower, VisionTransformer):
        return [tower.transformer, tower.ln_post]
    trunk: Any = getattr(tower, "trunk", None)
    names = ("blocks", "norm")
    return [trunk, *(getattr(trunk, name) for name in names if hasattr(trunk, name))] if trunk is not None else []


def reads_end_token(tower: Any) -> bool:
    """Return whether a text tower is causal and its feature depends on the end token's output alone."""
    if isinstance(tower, TextTransformer):
        plain = tower.cls_emb is None and not tower.use_pad_mask and not tower.output_tokens
        pooling = tower.pool_type
    else:
        plain, pooling = True, getattr(tower, "text_pool_type", None)
    layers = tower.transformer
    causal = tower.attn_mask is not None and layers.batch_first and not layers.grad_checkpointing
    return plain and causal and pooling in ("argmax", "eos")


def end_positions(tower: Any, tokens: Tensor) -> Tensor:
    """Return the positions [P] at which open_clip's `text_global_pool` reads tokens [P, L]."""
    pooling = tower.pool_type if isinstance(tower, TextTransformer) else tower.text_pool_type
    if pooling == "argmax":
        return tokens.argmax(dim=-1)
    end = tower.eos_id if isinstance(tower, TextTransformer) else tower.text_eos_id
    return (tokens == end).int().argmax(dim=-1)


def encode_cut_text(tower: Any, tokens: Tensor, ends: Tensor) -> Tensor:
    """Return features [P, D] of fewer tokens than open_clip's `encode_text` takes, at these positions [P]."""
    length = tokens.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(x), device=x.device), ends]
    projection = tower.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
