"""The last block of a tower, computed for the one token that the tower's pooling reads.

The keys and values of the last block need all tokens. Its queries, output projection, norms and MLP act on each token
alone, and the pooling of many towers reads one: the class token of an image, the end token of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Keys(NamedTuple):
    """The input [B, S, C] of keys and values, and the positions [B] of the queries in it; None for the first ones."""

    tokens: Tensor
    positions: Tensor | None

    def mask(self) -> Tensor | None:
        """Return [B, 1, 1, S], True for keys up to the query's position; None, all keys, without positions."""
        if self.positions is None:
            return None
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (places <= self.positions[:, None])[:, None, None]


_keys: ContextVar[Keys | None] = ContextVar("keys", default=None)


@contextmanager
def keys_of(tokens: Tensor, positions: Tensor | None) -> Iterator[None]:
    """Within it, attention layers take keys and values from these tokens [B, S, C], and queries from their own input.

    Args:
        tokens: All tokens.
        positions: Position [B] of each row's query, for causal attention; None for the first token, which attends to
            all others and has no rotary position.
    """
    token = _keys.set(Keys(tokens, positions))
    try:
        yield
    finally:
        _keys.reset(token)


def given_keys() -> Keys | None:
    """Return the tokens of `keys_of`, None outside of it."""
    return _keys.get()


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
