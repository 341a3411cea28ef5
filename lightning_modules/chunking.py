"""Encode a full batch in chunks, with the same gradient as in one pass.

The losses relate all rows of the batch to each other, so gradient accumulation cannot split it. Chunks with activation
checkpointing can: only one chunk's activations are in memory at a time, at the cost of a second forward pass.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

# Numbers of these options in glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = -1
_MMAP_MAX = 65536  # glibc's default

# Rows of a pass whose mask comes from one generator. A chunk draws the whole blocks that it touches: few rows save work
# on a CPU, where a generator costs 3 us, and many rows save launches on other devices.
_CPU_BLOCK = 5
_BLOCK = 128


class _Share(NamedTuple):
    """Which images of a batch this process has: `rank`, `rank` + `processes`, ... of so many images."""

    rank: int
    processes: int
    images: int


class _Rows(NamedTuple):
    """The images of the current chunk: number of the first one, how many, and seed and size of the passes."""

    first: int
    images: int
    passes: tuple[tuple[int, int], ...]
    share: _Share | None
    members: tuple[int, ...]

    def spans(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield first and last row in this chunk, and the number of all rows, of each pass.

        A tower may split each image into several rows (windows): `length` in this chunk.
        """
        per_image, start = length / self.images, 0
        for _, images in self.passes:
            first, last = (min(max(n - start, 0), images) for n in (self.first, self.first + self.images))
            yield round(first * per_image), round(last * per_image), round(images * per_image)
            start += images


class _Together(NamedTuple):
    """Which of several episodes a batch is of, and the seeds of their passes if they are given."""

    members: tuple[int, ...]
    seeds: tuple[int, ...] | None


_rows: ContextVar[_Rows | None] = ContextVar("rows", default=None)
_share: ContextVar[_Share | None] = ContextVar("share", default=None)
_together: ContextVar[_Together | None] = ContextVar("together", default=None)


@contextmanager
def share_of_images(rank: int, processes: int, images: int) -> Iterator[None]:
    """Within it, `RowDropout` gives the images of a process the masks that they have in the undivided batch.

    Args:
        rank: Number r of this process. It encodes the images r, r + processes, ... of the batch.
        processes: Number of processes.
        images: Number of the images of the undivided batch.
    """
    token = _share.set(_Share(rank, processes, images))
    try:
        yield
    finally:
        _share.reset(token)


@contextmanager
def side_by_side(members: Sequence[int], seeds: Sequence[int] | None = None) -> Iterator[None]:
    """Within it, `encode_in_chunks` takes a batch of these members of several episodes that are trained together.

    Args:
        members: Numbers of the episodes, in the order of their rows; each has the same number of rows.
        seeds: Seed of each episode's pass; None for one episode alone, whose seed is drawn as always.
    """
    token = _together.set(_Together(tuple(members), None if seeds is None else tuple(seeds)))
    try:
        yield
    finally:
        _together.reset(token)


def members_at_work() -> tuple[int, ...]:
    """Return the episodes that the current batch is of; empty unless several are trained together."""
    together = _together.get()
    return () if together is None else together.members


def rows_of_members(length: int) -> list[tuple[int, int]]:
    """Return the episodes of the current chunk and their numbers of rows, of `length` in all; empty for one alone."""
    rows = _rows.get()
    if rows is None or not rows.members:
        return []
    spans = zip(rows.members, rows.spans(length), strict=True)
    return [(member, last - first) for member, (first, last, _) in spans if last > first]


def pass_seed() -> int | None:
    """Return the seed of the current pass through `encode_in_chunks`, below 2^62; None outside of one.

    The seed is the same in all chunks of a pass and in their recomputation.

    Raises:
        ValueError: There are several passes in one batch.
    """
    rows = _rows.get()
    if rows is None:
        return None
    if len(rows.passes) > 1:
        raise ValueError(f"the batch has {len(rows.passes)} passes, each with its own seed; expected one")
    return rows.passes[0][0]


@cache
def _give_freed_memory_back() -> None:
    """Make glibc map every block of 1 MiB or more separately, for the rest of the process.

    Its heap rarely reuses the aligned blocks that torch frees: a step of 125 images in chunks of 25 had a peak of 12.1
    GB instead of 5.1. Does nothing without glibc.
    """
    _set_malloc({_M_MMAP_THRESHOLD: 2**20, _M_MMAP_MAX: _MMAP_MAX})


@cache
def _keep_freed_memory() -> None:
    """Make glibc keep all freed memory for later blocks, for the rest of the process.

    By default it gives the blocks of every step back to the system, which clears each page again for the next step: a
    step of 25 images of ViT-B/16 took a fifth longer. Does nothing without glibc, and where chunks are used.
    """
    if not _give_freed_memory_back.cache_info().currsize:
        _set_malloc({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER})


def _set_malloc(options: dict[int, int]) -> None:
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)


def encode_in_chunks(
    encode: Callable[[Tensor], Tensor],
    images: Tensor,
    chunk: int | None = None,
    *,
    passes: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Encode images [N, 3, H, W] to features [N, D], at most `chunk` images at a time if given.

    With gradients enabled, the backward pass computes each chunk again (`torch.utils.checkpoint`). `RowDropout` layers
    draw the same masks with and without chunks.

    With gradients on a CPU this sets options of glibc's malloc for the rest of the process: without chunks freed blocks
    are kept for the next step, with chunks they are given back.

    Args:
        encode: The tower.
        images: The images.
        chunk: Number of images at a time; None means all.
        passes: Seed and number of images of several undivided batches that follow each other in `images`. A row gets
            the mask that it has if its batch is encoded alone. None means one batch, whose seed is drawn from torch's
            global generator.

    Raises:
        ValueError: The passes have more or fewer images than there are.
    """
    together = _together.get()
    members = () if together is None else together.members
    if passes is None and together is not None and together.seeds is not None:
        passes = [(seed, len(images) // len(members)) for seed in together.seeds]
    if passes is None:
        # Nothing is drawn without gradient: whether features come from the cache must not change later random numbers.
        passes = [(int(torch.randint(2**62, ())) if torch.is_grad_enabled() else 0, len(images))]
    if sum(count for _, count in passes) != len(images):
        raise ValueError(f"passes {list(passes)} do not add up to {len(images)} images")
    all_passes, share = tuple(passes), _share.get()

    def encode_rows(part: Tensor, first: int) -> Tensor:
        token = _rows.set(_Rows(first, len(part), all_passes, share, members))
        try:
            return encode(part)
        finally:
            _rows.reset(token)

    if chunk is None or len(images) <= chunk:
        if chunk is None and torch.is_grad_enabled() and images.device.type == "cpu":
            _keep_freed_memory()
        return encode_rows(images, 0)
    run: Callable[..., Tensor] = encode_rows
    if torch.is_grad_enabled():
        run = partial(checkpoint, encode_rows, use_reentrant=False)
        if images.device.type == "cpu":
            _give_freed_memory_back()
    return torch.cat([run(images[first : first + chunk], first) for first in range(0, len(images), chunk)])


class RowDropout(nn.Module):
    """Dropout whose masks do not depend on how `encode_in_chunks` divides a batch, nor on batches beside it.

    A row's mask depends on the seed and size of its pass, on this layer's position and on the row's number within the
    pass. Outside of `encode_in_chunks` this is ordinary dropout.

    A random byte decides about each element if p is a multiple of 1/256, otherwise 16 random bits, so that the
    probability is p rounded to a multiple of 2^-16 (at most 1 - 2^-16). What is kept is scaled by the rounded one.

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
        bits = 8 if float(self.p * 256).is_integer() and self.p < 1 else 16
        dropped = min(round(self.p * 2**bits), 2**bits - 1)
        kept = self._random(x, rows, torch.uint8 if bits == 8 else torch.int16)
        # In place, and a byte instead of bool: several times faster on a CPU.
        kept = kept.ge_(dropped if bits == 8 else dropped - 2**15).to(torch.uint8)
        return (x * kept).mul_(2**bits / (2**bits - dropped))

    def _random(self, x: Tensor, rows: _Rows, dtype: torch.dtype) -> Tensor:
        """Integers with the shape of `x`; a tower may split each image into several rows (windows)."""
        if rows.share is not None and len(rows.passes) == 1:
            per_image = len(x) / rows.images
            rank, processes, images = rows.share
            first, last = (number * processes + rank for number in (rows.first, rows.first + rows.images - 1))
            limits = (round(number * per_image) for number in (first, last + 1, images))
            drawn = torch.cat(list(self._blocks(x, dtype, rows.passes[0][0], *limits)))
            return drawn.unflatten(0, (-1, len(x) // rows.images))[::processes].flatten(0, 1)
        seeds = [seed for seed, _ in rows.passes]
        spans = zip(seeds, rows.spans(len(x)), strict=True)
        blocks = [block for seed, span in spans for block in self._blocks(x, dtype, seed, *span)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def _blocks(self, x: Tensor, dtype: torch.dtype, seed: int, first: int, last: int, rows: int) -> Iterator[Tensor]:
        """Draw the rows from `first` to `last` of a pass with this many rows."""
        size = _CPU_BLOCK if x.device.type == "cpu" else _BLOCK
        for begin in range(first // size * size, last, size):
            mixed = (seed + 7919 * self.position + 104729 * (begin // size)) % 2**63
            generator = Generator(x.device).manual_seed(mixed)
            # As many rows as in the undivided batch: on a GPU the numbers of a row depend on how many are drawn.
            block = _random_integers((min(size, rows - begin), *x.shape[1:]), dtype, generator)
            yield block[max(first - begin, 0) : last - begin]

    def extra_repr(self) -> str:
        """Return the probability, for the printed module."""
        return f"p={self.p}"


def _random_integers(shape: Sequence[int], dtype: torch.dtype, generator: Generator) -> Tensor:
    """Return integers that are uniform over all values of their type."""
    if generator.device.type == "cpu":
        # As whole words: a CPU draws one element at a time.
        words = torch.empty(-(-math.prod(shape) * dtype.itemsize // 8), dtype=torch.int64)
        words.random_(-(2**63), None, generator=generator)
        return words.view(dtype)[: math.prod(shape)].view(*shape)
    limits = torch.iinfo(dtype)
    drawn = torch.empty(tuple(shape), dtype=dtype, device=generator.device)
    return drawn.random_(limits.min, limits.max + 1, generator=generator)
