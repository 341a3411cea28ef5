"""Decoded batches: from images to rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor

from .images import ImageError
from .views import Preprocessing

Batch = dict[str, Tensor]
Views = list[Image.Image]


class Batches:
    """A fixed series of batches: what Lightning needs of a loader when nothing is left to load."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def split_batch(batch: Batch, rows: int) -> Batches:
    """A batch cut into batches of at most so many rows."""
    starts = range(0, len(batch["labels"]), rows)
    return Batches([{name: rows_of[i : i + rows] for name, rows_of in batch.items()} for i in starts])


def decode(
    positions: Sequence[int], views_of: Callable[[int], Views], num_workers: int
) -> dict[int, Views | ImageError]:
    """Views of the image at each position, or the error that kept it from being read.

    Args:
        positions: Which images.
        views_of: Reads one image; Pillow lets several threads do so at a time.
        num_workers: Threads; 0 for none.
    """

    def attempt(position: int) -> Views | ImageError:
        try:
            return views_of(position)
        except ImageError as error:
            return error

    if num_workers == 0:
        return {position: attempt(position) for position in positions}
    with ThreadPoolExecutor(num_workers) as pool:
        return dict(zip(positions, pool.map(attempt, positions), strict=True))


def to_batch(images: Sequence[Sequence[int]], views: dict[int, Views], preprocessing: Preprocessing) -> Batch:
    """One batch of the images of each class, its rows in the order view, class, shot.

    Args:
        images: Positions of the images of class 0, 1, ...; not all lists may be empty.
        views: The V views, S x S pixels each, of the image at each position. They are pictures of bytes, so
            that the float32 batch is in memory only once.
        preprocessing: Normalisation.

    Returns:
        `images` [V*M, 3, S, S], `labels`, `view` and `sample_id` [V*M] for M images.
    """
    sample_id = torch.tensor([p for of_class in images for p in of_class], dtype=torch.int64)
    labels = torch.tensor([label for label, of_class in enumerate(images) for _ in of_class])
    rows, count, size = len(sample_id), len(next(iter(views.values()))), preprocessing.image_size
    pixels = torch.empty(count, rows, 3, size, size)
    for row, position in enumerate(sample_id.tolist()):
        for view, picture in enumerate(views[position]):
            pixels[view, row] = preprocessing.to_tensor(picture)
    return {
        "images": pixels.flatten(0, 1),
        "labels": labels.repeat(count),
        "view": torch.arange(count).repeat_interleave(rows),
        "sample_id": sample_id.repeat(count),
    }
