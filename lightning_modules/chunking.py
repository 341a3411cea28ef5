"""Encode a full batch in chunks, with the same gradient as in one pass.

The losses relate all rows of the batch to each other, so gradient accumulation cannot split it. Chunks with activation
checkpointing can: only one chunk's activations are in memory at a time, at the cost of a second forward pass.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

# Number of this option in glibc's malloc.h
_M_MMAP_THRESHOLD = -3

# Rows whose mask comes from one generator. A generator per row would mean many small launches on a GPU, and one for the
# whole batch would draw the whole mask for every chunk. Support batches of a 5-way task are multiples of 5 rows.
_BLOCK = 5


class _Rows(NamedTuple):
    """The rows of the current chunk and the seed of its pass."""

    first: int
    images: int
    seed: int


_rows: ContextVar[_Rows | None] = ContextVar("rows", default=None)


def pass_seed() -> int | None:
    """Return the seed of the current pass through `encode_in_chunks`, below 2^62; None outside of one.

    The seed is the same in all chunks of a pass and in their recomputation.
    """
    rows = _rows.get()
    return None if rows is None else rows.seed


@cache
def _give_freed_memory_back() -> None:
    """Make glibc map every block of 1 MiB or more separately, for the rest of the process.

    Its heap rarely reuses the aligned blocks that torch frees: a step of 125 images in chunks of 25 had a peak of 12.1
    GB instead of 5.1. Does nothing without glibc.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


def encode_in_chunks(encode: Callable[[Tensor], Tensor], images: Tensor, chunk: int | None = None) -> Tensor:
    """Encode images [N, 3, H, W] to features [N, D], at most `chunk` images at a time if given.

    With gradients enabled, the backward pass computes each chunk again (`torch.utils.checkpoint`). `RowDropout` layers
    draw the same masks with and without chunks. On a CPU this sets an option of glibc's malloc permanently.
    """
    # Nothing is drawn without gradient: whether features come from the cache must not change later random numbers.
    seed = int(torch.randint(2**62, ())) if torch.is_grad_enabled() else 0

    def encode_rows(part: Tensor, first: int) -> Tensor:
        token = _rows.set(_Rows(first, len(part), seed))
        try:
            return encode(part)
        finally:
            _rows.reset(token)

    if chunk is None or len(images) <= chunk:
        return encode_rows(images, 0)
    run: Callable[..., Tensor] = encode_rows
    if torch.is_grad_enabled():
        run = partial(checkpoint, encode_rows, use_reentrant=False)
        if images.device.type == "cpu":
            _give_freed_memory_back()
    return torch.cat([run(images[first : first + chunk], first) for first in range(0, len(images), chunk)])


class RowDropout(nn.Module):
    """Dropout whose masks do not depend on how `encode_in_chunks` divides the batch.

    Each block of 5 rows of the undivided batch has its own generator, seeded with the pass, this layer's position and
    the block's number. Outside of `encode_in_chunks` this is ordinary dropout.

    Args:
        p: Probability of zeroing an element.
        position: A number that is unique among the dropout layers of the model; part of the seed.
    """

    def __init__(self, p: float, position: int) -> None:
        super().__init__()
        self.p = p
        self.position = position

    def forward(self, x: Tensor) -> Tensor:
        """In training, zero elements of the input [rows, ...] and scale the others by 1 / (1 - p)."""
        rows = _rows.get()
        if rows is None or not self.training or self.p == 0:
            return nn.functional.dropout(x, self.p, self.training)
        return x * self._kept(x, rows) / (1 - self.p)

    def _kept(self, x: Tensor, rows: _Rows) -> Tensor:
        """Mask with the shape of `x`; if a tower splits an image into several rows (windows), they stay together."""
        first = rows.first * len(x) // rows.images
        blocks = range(first // _BLOCK, -(-(first + len(x)) // _BLOCK))
        kept = torch.empty((len(blocks), _BLOCK, *x.shape[1:]), dtype=torch.bool, device=x.device)
        for number, block in zip(blocks, kept, strict=True):
            seed = (rows.seed + 7919 * self.position + 104729 * number) % 2**63
            block.bernoulli_(1 - self.p, generator=Generator(x.device).manual_seed(seed))
        start = first - blocks.start * _BLOCK
        return kept.flatten(0, 1)[start : start + len(x)]

    def extra_repr(self) -> str:
        """Return the probability, for the printed module."""
        return f"p={self.p}"
