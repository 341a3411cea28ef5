"""Batches of images that are decoded by workers while earlier batches are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ..errors import DtrapError
from .batches import WHOLE, Batch
from .collection import ImageCollection
from .images import ImageError
from .subset import Positions

TEST_BATCH = 128
_STREAM = 11  # first part of the spawn key, different from those of episodes and subsets


class TrainingSteps(Dataset[dict[str, Any]]):
    """Training batches by step number: step s has rows s*B to (s+1)*B of an endless series of shuffled passes.

    All random numbers come from (seed, step) alone, so that a step is the same in any worker and after a resume.

    Args:
        data: The images.
        images: Training images of each class.
        seed: Seed of the task.
        batch_size: Images B of a step.
        crops: Whether images are cropped and flipped at random.
        share: Rows of each batch that this process decodes.
    """

    def __init__(
        self, data: ImageCollection, images: Positions, seed: int, batch_size: int, crops: bool, share: slice = WHOLE
    ) -> None:
        self.load_image, self.preprocessing, self.seed = data.load_image, data.preprocessing, seed
        self.positions = np.array([position for of_class in images for position in of_class])
        self.labels = np.repeat(np.arange(len(images)), [len(of_class) for of_class in images])
        self.batch_size, self.crops, self.share = batch_size, crops, share
        size = self.preprocessing.image_size
        crop = transforms.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC)
        self.augment = transforms.Compose([crop, transforms.RandomHorizontalFlip()])

    def rows(self, step: int) -> list[int]:
        """Return the row numbers of a step's whole batch."""
        images, first = len(self.positions), step * self.batch_size
        passes = range(first // images, (first + self.batch_size - 1) // images + 1)
        orders = [self._generator(0, number).permutation(images) for number in passes]
        start = first - passes.start * images
        return np.concatenate(orders)[start : start + self.batch_size].tolist()

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_STREAM, *purpose)))

    def __getitem__(self, step: int) -> dict[str, Any]:
        rows = self.rows(step)
        # Drawn for the whole batch before it is shared out: a row looks the same in whichever process has it.
        seeds = self._generator(1, step).integers(2**62, size=len(rows)).tolist()
        chosen = list(zip(rows, seeds, strict=True))[self.share]
        items = [
            _item(self, int(self.positions[row]), seed) | {"labels": int(self.labels[row])} for row, seed in chosen
        ]
        return collate(items)

    def picture(self, position: int, seed: int) -> Image.Image:
        """Return the picture of a row, augmented with random numbers from the seed."""
        image = self.load_image(position)
        if not self.crops:
            return self.preprocessing.resize(image)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also look for every kind of device, for each image.
            torch.default_generator.manual_seed(seed)
            return self.augment(image)


class PlainImages(Dataset[dict[str, Any]]):
    """The plain view of every image, class by class."""

    def __init__(self, data: ImageCollection, images: Positions) -> None:
        self.load_image, self.preprocessing = data.load_image, data.preprocessing
        self.rows = [(position, label) for label, of_class in enumerate(images) for position in of_class]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        position, label = self.rows[number]
        return _item(self, position, 0) | {"labels": label}

    def picture(self, position: int, seed: int) -> Image.Image:
        """Return the resized picture; the seed is not used."""
        return self.preprocessing.resize(self.load_image(position))


def _item(dataset: TrainingSteps | PlainImages, position: int, seed: int) -> dict[str, Any]:
    try:
        pixels = dataset.preprocessing.to_tensor(dataset.picture(position, seed))
    except ImageError as error:
        return {"sample_id": position, "fault": str(error)}
    return {"sample_id": position, "images": pixels}


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a batch of the readable items, with `faults` [(position, reason)] of the others."""
    sound = [item for item in items if "fault" not in item]
    batch: dict[str, Any] = {
        name: torch.tensor([item[name] for item in sound], dtype=torch.int64) for name in ("labels", "sample_id")
    }
    # default_collate stacks into shared memory in a worker; torch.stack would copy the pixels once more.
    batch["images"] = default_collate([item["images"] for item in sound]) if sound else torch.empty(0)
    return batch | {"faults": [(item["sample_id"], item["fault"]) for item in items if "fault" in item]}


class _From(Sampler[int]):
    """Step numbers from `first` on, without end."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return count(self.first)


class TrainingStream:
    """Training batches, a fixed number of steps per epoch; workers decode ahead into the next epoch.

    After a resume in the middle of an epoch it yields the remaining batches of that epoch.

    Args:
        data: The data module; its trainer knows how much of the epoch is done.
        dataset: Returns the batch of a step.
        steps: Steps of an epoch.
    """

    def __init__(self, data: ImageCollection, dataset: TrainingSteps, steps: int) -> None:
        self.data, self.dataset = data, dataset
        self.steps, self.epoch = steps, 0
        self._batches: Iterator[dict[str, Any]] = iter(())
        self._next = -1

    @property
    def sampler(self) -> TrainingStream:
        """This object: Lightning calls `set_epoch` of a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Switch to another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        # The fit loop restores its progress before it asks for batches, but does not skip those that are done.
        loop = getattr(self.data.trainer, "fit_loop", None)
        done = 0 if loop is None else loop.epoch_loop.batch_progress.current.completed
        begin = self.epoch * self.steps
        first = begin + (done if done < self.steps else 0)
        # One loader serves all epochs: workers would have to start again with every new one.
        if self._next != first:
            sampler = _From(first)
            self._batches = iter(DataLoader(self.dataset, batch_size=None, sampler=sampler, **_workers(self.data)))
        for step in range(first, begin + self.steps):
            batch = next(self._batches)
            self._next = step + 1
            yield from sound_batch(batch, self.data)


class Streamed:
    """Batches of a loader with workers, in order.

    Args:
        loader: Yields batches with `faults`.
        data: Records the unreadable images.
    """

    def __init__(self, loader: DataLoader[dict[str, Any]], data: ImageCollection) -> None:
        self.loader, self.data = loader, data

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        sound = 0
        for batch in self.loader:
            for rows in sound_batch(batch, self.data):
                sound += 1
                yield rows
        if len(self.loader) and not sound:
            raise DtrapError(
                f"{self.data.title}: none of the images of a test or validation can be read. Replace them."
            )


def sound_batch(batch: dict[str, Any], data: ImageCollection) -> Iterator[Batch]:
    """Yield the batch without its `faults`, unless it is empty; record the faults in the main process."""
    for position, reason in batch.pop("faults"):
        data.unreadable(position, reason)
    if len(batch["labels"]):
        yield batch | {"view": torch.zeros_like(batch["labels"])}


def stream_plain(data: ImageCollection, images: Positions, share: slice = WHOLE) -> Streamed:
    """Return every image once, plain, decoded by workers; only a few batches are in memory at a time.

    Args:
        data: The data module.
        images: Images of each class.
        share: Rows of each batch that this process decodes.
    """
    dataset = PlainImages(data, images)
    rows = range(len(dataset))
    # Batches without a row of this process are left out.
    batches = [list(own) for i in rows[::TEST_BATCH] if (own := rows[i : i + TEST_BATCH][share])]
    return Streamed(DataLoader(dataset, batch_sampler=batches, collate_fn=collate, **_workers(data)), data)


def _workers(data: ImageCollection) -> dict[str, Any]:
    workers = data.num_workers
    return {"num_workers": workers, "prefetch_factor": 2 if workers else None}
