"""The full batch through the image tower in chunks, with the gradient of the undivided pass.

The losses relate all rows of the batch, so gradient accumulation cannot split it. Chunks with activation checkpointing
can: only one chunk's activations are alive at a time, at the price of a second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint


class _Rows(NamedTuple):
    """Which rows of which pass the running chunk holds."""

    first: int
    total: int
    seed: int


_rows: ContextVar[_Rows | None] = ContextVar("rows", default=None)


@contextmanager
def _chunk_rows(rows: _Rows) -> Iterator[None]:
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


def encode_in_chunks(encode: Callable[[Tensor], Tensor], images: Tensor, chunk: int | None = None) -> Tensor:
    """Features [N, D] of images [N, 3, H, W], at most `chunk` images at a time where given.

    With gradients on, each chunk is recomputed in the backward pass (`torch.utils.checkpoint`). `RowDropout` layers draw
    the same masks with and without chunks.
    """
    total = len(images)
    seed = int(torch.randint(2**62, ()))

    def encode_rows(part: Tensor, first: int) -> Tensor:
        with _chunk_rows(_Rows(first, total, seed)):
            return encode(part)

    if chunk is None or total <= chunk:
        return encode_rows(images, 0)
    if not torch.is_grad_enabled():
        return torch.cat([encode_rows(images[i : i + chunk], i) for i in range(0, total, chunk)])
    return torch.cat(
        [
            checkpoint(encode_rows, images[i : i + chunk], i, use_reentrant=False)
            for i in range(0, total, chunk)
        ]
    )


class RowDropout(nn.Module):
    """Dropout whose masks do not depend on how `encode_in_chunks` divides the batch.

    The mask of the undivided batch is drawn for every chunk, from a generator seeded by the pass and this layer's
    position, and the chunk's rows are taken from it. Outside of `encode_in_chunks` it is ordinary dropout.

    Args:
        p: Probability of an element to be zeroed.
        position: A number that no other dropout of the model has.
    """

    def __init__(self, p: float, position: int) -> None:
        super().__init__()
        self.p = p
        self.position = position

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [rows, ...] with elements zeroed and the others scaled by 1 / (1 - p) in training."""
        rows = _rows.get()
        if not self.training or self.p == 0:
            return x
        if rows is None:
            return nn.functional.dropout(x, self.p)
        generator = Generator(x.device).manual_seed((rows.seed + 7919 * self.position) % 2**63)
        kept = torch.empty((rows.total, *x.shape[1:]), dtype=torch.bool, device=x.device)
        kept.bernoulli_(1 - self.p, generator=generator)
        return x * kept[rows.first : rows.first + len(x)] / (1 - self.p)

    def extra_repr(self) -> str:
        """The probability, for the printed module."""
        return f"p={self.p}"
