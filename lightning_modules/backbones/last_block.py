"""The last block of a tower, computed for the one token that the tower's pooling reads.

The keys and values of the last block need all tokens. Its queries, output projection, norms and MLP act on each token
alone, and the pooling of many towers reads one: the class token of an image, the end token of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .attention import SeparateAttention, keys_of


@dataclass(frozen=True)
class _Read:
    """The block that computes one token, and the positions [B] of this token; None for the first one."""

    block: nn.Module
    positions: Tensor | None


_read: ContextVar[_Read | None] = ContextVar("read", default=None)
_every_token: ContextVar[bool] = ContextVar("every_token", default=False)


@contextmanager
def all_tokens() -> Iterator[None]:
    """Within it, the last blocks compute all tokens, for code that looks at them without a hook."""
    token = _every_token.set(True)
    try:
        yield
    finally:
        _every_token.reset(token)


@contextmanager
def reading(block: nn.Module | None, after: Sequence[nn.Module], positions: Tensor | None = None) -> Iterator[None]:
    """Within it, the last block computes the token that the pooling reads, unless a hook could see the others.

    Args:
        block: The last block, prepared by `prepare_last_block`; None computes all tokens.
        after: Modules behind the block that get all tokens: their hooks count.
        positions: Positions [B] of the token; None for the first one of an image.
    """
    if block is None or _every_token.get() or _has_hooks(block, after):
        yield
        return
    token = _read.set(_Read(block, positions))
    try:
        yield
    finally:
        _read.reset(token)


def _has_hooks(block: nn.Module, after: Sequence[nn.Module]) -> bool:
    # Private in torch, which has no public question for hooks. What changes the block's input does no harm.
    if block._forward_hooks or block._backward_hooks or block._backward_pre_hooks:
        return True
    others = (*after, *(module for module in block.modules() if module is not block))
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(getattr(module, kind) for module in others for kind in kinds)


class LastBlock(nn.Module):
    """A residual block that can compute a single token; a subclass has the class of the block as its second base.

    Attributes:
        norm_name: Name of the norm before the attention.
    """

    norm_name: ClassVar[str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block returns, within `reading` of one token.

        An image's token is returned alone, [B, 1, C]. A text's is repeated to [B, L, C], so that the pooling finds it
        at its position.
        """
        read = _read.get()
        if read is None or read.block is not self:
            return super().forward(*args, **kwargs)
        tokens, *others = args
        with keys_of(self.get_submodule(self.norm_name)(tokens), read.positions):
            output = super().forward(_at(tokens, read.positions), *others, **kwargs)
        if read.positions is None:
            return output
        length = tokens.shape[1]
        if isinstance(output, tuple):
            return (output[0].expand(-1, length, -1), *output[1:])
        return output.expand(-1, length, -1)


def _at(tokens: Tensor, positions: Tensor | None) -> Tensor:
    """Return the token [B, 1, C] at the positions [B]."""
    if positions is None:
        return tokens[:, :1]
    return tokens[torch.arange(len(tokens), device=tokens.device), positions][:, None]


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
