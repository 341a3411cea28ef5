"""Batches of images that are decoded by workers while earlier batches are used."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ..errors import DtrapError
from .batches import WHOLE, Batch, Collated, EpochLoader, Share, batches_done, collate, read_item
from .collection import ImageCollection
from .subset import Positions

TEST_BATCH = 128
_STREAM = 11  # first part of the spawn key, different from those of episodes and subsets


class TrainingSteps(Dataset[Collated]):
    """Training batches by step number: step s has rows s*B to (s+1)*B of an endless series of shuffled passes.

    All random numbers come from (seed, step) alone, so that a step is the same in any worker and after a resume.

    Args:
        data: The images.
        images: Training images of each class.
        seed: Seed of the task.
        batch_size: Images B of a step.
        crops: Whether images are cropped and flipped at random.
        share: Rows of each batch that this process decodes.

    Raises:
        DtrapError: A batch has fewer rows than there are processes.
    """

    def __init__(
        self, data: ImageCollection, images: Positions, seed: int, batch_size: int, crops: bool, share: Share = WHOLE
    ) -> None:
        share.check(batch_size, "images of --data.all_way.batch_size")
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

    def __getitem__(self, step: int) -> Collated:
        rows = self.rows(step)
        # Drawn for the whole batch before it is shared out: a row looks the same in whichever process has it.
        seeds = self._generator(1, step).integers(2**62, size=len(rows)).tolist()
        chosen = list(zip(rows, seeds, strict=True))[self.share.rows]
        return collate([self._item(row, seed) for row, seed in chosen])

    def _item(self, row: int, seed: int) -> dict[str, Any]:
        position = int(self.positions[row])

        def read() -> Tensor:
            image = self.load_image(position)
            if self.crops:
                with torch.random.fork_rng(devices=[]):
                    # torch.manual_seed would also look for every kind of device, for each image.
                    torch.default_generator.manual_seed(seed)
                    image = self.augment(image)
            return self.preprocessing.to_tensor(image)

        return read_item({"sample_id": position, "labels": int(self.labels[row])}, read)


class PlainImages(Dataset[dict[str, Any]]):
    """The plain view of every image, class by class."""

    def __init__(self, data: ImageCollection, images: Positions) -> None:
        self.load_image, self.preprocessing = data.load_image, data.preprocessing
        self.rows = [(position, label) for label, of_class in enumerate(images) for position in of_class]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        position, label = self.rows[number]
        item = {"sample_id": position, "labels": label}
        return read_item(item, lambda: self.preprocessing.to_tensor(self.load_image(position)))


class TrainingStream(EpochLoader):
    """Training batches, a fixed number of steps per epoch; workers decode ahead into the next epoch.

    After a resume in the middle of an epoch it yields the remaining batches of that epoch.

    Args:
        data: The data module; its trainer knows how much of the epoch is done.
        dataset: Returns the batch of a step.
        steps: Steps of an epoch.
    """

    full_batch = False

    def __init__(self, data: ImageCollection, dataset: TrainingSteps, steps: int) -> None:
        self.data, self.dataset, self.preprocessing = data, dataset, dataset.preprocessing
        self.steps = steps
        self._batches: Iterator[Collated] = iter(())
        self._next = -1

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        begin = self.epoch * self.steps
        first = begin + batches_done(self.data)
        # One loader serves all epochs: workers would have to start again with every new one.
        if self._next != first:
            workers = self.data.num_workers
            loader = DataLoader(self.dataset, batch_size=None, sampler=count(first), num_workers=workers)
            self._batches = iter(loader)
        for step in range(first, begin + self.steps):
            batch = next(self._batches)
            self._next = step + 1
            yield from sound_batch(batch, self.data, shared=self.dataset.share.processes > 1)


class Streamed:
    """Batches of a loader with workers, in order.

    Args:
        loader: Yields what `collate` returns.
        data: Records the unreadable images.
        shared: Whether other processes have a part of each batch.
    """

    def __init__(self, loader: DataLoader[Any], data: ImageCollection, *, shared: bool = False) -> None:
        self.loader, self.data, self.preprocessing, self.shared = loader, data, data.preprocessing, shared

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        sound = 0
        for batch in self.loader:
            for rows in sound_batch(batch, self.data, shared=self.shared):
                sound += 1
                yield rows
        if len(self.loader) and not sound:
            raise DtrapError(
                f"{self.data.title}: none of the images of a test or validation can be read. Replace them."
            )


def sound_batch(collated: Collated, data: ImageCollection, *, shared: bool = False) -> Iterator[Batch]:
    """Yield the batch of the readable images, if any; record the others in the main process.

    Raises:
        DtrapError: None is readable of a batch that other processes have a part of.
    """
    batch, faults = collated
    for item in faults:
        data.unreadable(item["sample_id"], item["fault"])
    if batch is None and shared:
        raise DtrapError(
            f"{data.title}: none of the {len(faults)} images that a device has of a batch can be read, such as "
            f"{faults[0]['fault']}. Replace them, or use --trainer.devices 1."
        )
    if batch is not None:
        yield batch | {"view": torch.zeros_like(batch["labels"])}


def stream_plain(
    data: ImageCollection, images: Positions, share: Share = WHOLE, generator: torch.Generator | None = None
) -> Streamed:
    """Return every image once, plain, decoded by workers; only a few batches are in memory at a time.

    Args:
        data: The data module.
        images: Images of each class.
        share: Images that this process decodes.
        generator: What torch draws the seed of the workers from; None for the global one, whose state it changes.
    """
    dataset = PlainImages(data, images)
    batches = [list(own) for own in share.batches(len(dataset), TEST_BATCH)]
    workers = data.num_workers
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, generator=generator)
    return Streamed(loader, data, shared=share.processes > 1)
