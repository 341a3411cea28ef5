"""Batches of decoded images."""

from __future__ import annotations

from collections import UserList
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from ..errors import DtrapError
from .images import ImageError
from .views import Preprocessing

Batch = dict[str, Tensor]
Collated = tuple[Batch | None, list[dict[str, Any]]]  # a batch of the readable items, if any, and the others
Views = list[Image.Image]


class Share(NamedTuple):
    """Which rows a process has: `rank`, `rank` + `processes`, ... of all rows.

    Attributes:
        rank: Number of this process, from 0.
        processes: Number of processes.
    """

    rank: int = 0
    processes: int = 1

    @property
    def rows(self) -> slice:
        """The rows of this process."""
        return slice(self.rank, None, self.processes)

    def batches(self, rows: int, size: int) -> list[range]:
        """Return the numbers of this process's rows in batches of at most `size`.

        Each process has the same number of batches: where DDP is active, a batch more would wait for ever.

        Args:
            rows: Number of the rows of all processes.
            size: Most rows of a batch.

        Raises:
            DtrapError: There are fewer rows than processes.
        """
        if self.processes == 1:
            return [range(first, min(first + size, rows)) for first in range(0, rows, size)]
        self.check(rows, "images of a test or validation")
        own, count = range(rows)[self.rows], -(-rows // (self.processes * size))
        ends = [number * len(own) // count for number in range(count + 1)]
        return [own[first:end] for first, end in pairwise(ends)]

    def check(self, rows: int, what: str) -> None:
        """Raise a DtrapError if a process would be left without a row."""
        if rows < self.processes:
            raise DtrapError(
                f"{self.processes} devices cannot share {rows} {what}: each needs one at least. Use "
                f"--trainer.devices {max(rows, 1)} or fewer."
            )


WHOLE = Share()  # one process does all the work


class Resumable:
    """A loader that a run resumes in the middle of an epoch; Lightning would warn about any other."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the batches follow from the progress of the fit loop."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


def batches_done(data: Any) -> int:
    """Return how many batches of the current epoch are done: those before the checkpoint of a resumed fit.

    The fit loop restores its progress before it asks for batches, but does not skip those that are done.
    """
    trainer = data.trainer
    if trainer is None or not trainer.training:
        return 0
    done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    return done if done < trainer.num_training_batches else 0


class Batches(Resumable, UserList[Batch]):
    """A fixed series of batches; Lightning would take a list for several loaders.

    Args:
        batches: The batches.
        preprocessing: Size and normalization of their images, which a module compares with those of its backbone.
    """

    def __init__(self, batches: Iterable[Batch] = (), preprocessing: Preprocessing | None = None) -> None:
        super().__init__(batches)
        self.preprocessing = preprocessing


class FullBatches(Batches):
    """The whole support batch at every step of an epoch."""

    full_batch = True


class EpochLoader(Resumable):
    """A loader whose batches depend on the number of the epoch, which Lightning sets."""

    epoch = 0

    @property
    def sampler(self) -> EpochLoader:
        """This object: Lightning calls `set_epoch` of a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Switch to another epoch."""
        self.epoch = epoch


class MiniBatches(EpochLoader):
    """The rows of a batch in mini-batches, shuffled in every epoch.

    A batch with fewer rows than one mini-batch is returned whole. After a resume in the middle of an epoch the
    remaining batches of that epoch follow.

    Args:
        batch: All rows.
        size: Rows of a mini-batch.
        order: Returns the order of the rows in an epoch: (epoch, number of rows) -> row numbers.
        preprocessing: Size and normalization of the images, which a module compares with those of its backbone.
        drop_last: Whether an incomplete last mini-batch is dropped.
        done: Returns the number of mini-batches of the current epoch that are done.
        share: Rows of each mini-batch that this process has.

    Raises:
        DtrapError: A mini-batch has fewer rows than there are processes.
    """

    full_batch = False

    def __init__(
        self,
        batch: Batch,
        size: int,
        order: Callable[[int, int], np.ndarray],
        preprocessing: Preprocessing | None = None,
        drop_last: bool = True,
        done: Callable[[], int] = int,
        share: Share = WHOLE,
    ) -> None:
        self.batch, self.order, self.preprocessing = batch, order, preprocessing
        self.drop_last, self.done, self.share = drop_last, done, share
        self.rows = len(batch["labels"])
        self.size = min(size, self.rows)
        last = self.size if drop_last else self.rows % self.size or self.size
        share.check(last, "rows of a mini-batch")

    def __len__(self) -> int:
        return self.rows // self.size if self.drop_last else -(-self.rows // self.size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.from_numpy(self.order(self.epoch, self.rows))
        for number in range(self.done(), len(self)):
            chosen = order[number * self.size : (number + 1) * self.size][self.share.rows]
            yield {name: column[chosen] for name, column in self.batch.items()}


def split_batch(
    batch: Batch, images: int, views: int = 1, share: Share = WHOLE, preprocessing: Preprocessing | None = None
) -> Batches:
    """Split a batch into batches of at most `images` images, each with all its views, view slowest.

    Args:
        batch: V*M rows.
        images: Most images of a part.
        views: Views V of each image.
        share: Images that are kept.
        preprocessing: Size and normalization of the images.
    """
    rows = torch.arange(len(batch["labels"])).unflatten(0, (views, -1))
    parts = [slice(own.start, own.stop, own.step) for own in share.batches(rows.shape[1], images)]
    # With one view slices, which share the memory of the batch.
    chosen = [part if views == 1 else rows[:, part].flatten() for part in parts]
    return Batches([{name: column[part] for name, column in batch.items()} for part in chosen], preprocessing)


def decode(
    positions: Sequence[int], views_of: Callable[[int], Views], num_workers: int
) -> dict[int, Views | ImageError]:
    """Return the views of the image at each position, or the error that kept it from being read.

    Args:
        positions: Which images.
        views_of: Reads one image; called from several threads, which Pillow allows.
        num_workers: Number of threads; 0 for none.
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


def read_item(item: dict[str, int], read: Callable[[], Tensor]) -> dict[str, Any]:
    """Return an item of a data set with its `images` [3, S, S], or with `fault`, the reason, if it cannot be read."""
    try:
        return item | {"images": read()}
    except ImageError as error:
        return item | {"fault": str(error)}


def collate(items: Sequence[dict[str, Any]]) -> Collated:
    """Return the batch of the readable items, if any, and the items with a fault."""
    readable = [item for item in items if "fault" not in item]
    return default_collate(readable) if readable else None, [item for item in items if "fault" in item]


def to_batch(images: Sequence[Sequence[int]], views: dict[int, Views], preprocessing: Preprocessing) -> Batch:
    """Return one batch of the images of each class, its rows in the order view, class, shot.

    Args:
        images: Positions of the images of class 0, 1, ...; at least one list must not be empty.
        views: The V views, S x S pixels each, of the image at each position.
        preprocessing: Normalization.

    Returns:
        `images` [V*M, 3, S, S], `labels`, `view` and `sample_id` [V*M] for M images.
    """
    sample_id = torch.tensor([p for of_class in images for p in of_class], dtype=torch.int64)
    labels = torch.tensor([label for label, of_class in enumerate(images) for _ in of_class])
    rows, count, size = len(sample_id), len(next(iter(views.values()))), preprocessing.image_size
    # Pictures of bytes are converted row by row into their place: the float32 batch is in memory only once.
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
