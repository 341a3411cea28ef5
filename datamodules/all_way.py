"""The all-way protocol: K images per class of all classes, mini-batches, and the whole test split, streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ..errors import DtrapError
from .batches import Batch
from .collection import ImageCollection
from .images import ImageError
from .subset import Positions

TEST_BATCH = 128
_STREAM = 11  # what numbers are drawn for, beside those of an episode


@dataclass
class AllWay:
    """All classes, K images of each, one task per seed, as CoOp and CLIP-LoRA have it.

    Args:
        seeds: One task each; of the same seed each class's images are the same, whatever the other classes. They are
            not CoOp's own choice, which another generator draws.
        batch_size: Images of a training step.
        augmentation: "crop" is RandomResizedCrop (scale 0.08 to 1, bicubic) and a horizontal flip, anew in every step;
            "plain" the plain view.
        validation: Whether there is a validation loader, of min(K, 4) images per class.
    """

    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    batch_size: int = 32
    augmentation: str = "crop"
    validation: bool = False

    def check(self) -> None:
        """Raise a DtrapError for a value that is out of range."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise DtrapError(f"all_way.seeds is {self.seeds}; expected different numbers from 0, such as [1, 2, 3].")
        if self.batch_size < 1:
            raise DtrapError(f"all_way.batch_size is {self.batch_size}; expected at least 1.")
        if self.augmentation not in ("crop", "plain"):
            raise DtrapError(f"all_way.augmentation is {self.augmentation!r}; expected 'crop' or 'plain'.")


class TrainingSteps(Dataset[dict[str, Any]]):
    """Item number s is the batch of step s: rows s*B to (s+1)*B of one permutation of the images after another.

    All that is random is drawn from (seed, step) alone, so that it is the same in any worker and after a resume.
    """

    def __init__(self, data: ImageCollection, images: Positions, seed: int, settings: AllWay) -> None:
        self.load_image, self.preprocessing, self.seed = data.load_image, data.preprocessing, seed
        self.positions = np.array([position for of_class in images for position in of_class])
        self.labels = np.repeat(np.arange(len(images)), [len(of_class) for of_class in images])
        self.batch_size, self.crops = settings.batch_size, settings.augmentation == "crop"
        size = self.preprocessing.image_size
        crop = transforms.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC)
        self.augment = transforms.Compose([crop, transforms.RandomHorizontalFlip()])

    def rows(self, step: int) -> list[int]:
        """Which of the images a step has."""
        images, first = len(self.positions), step * self.batch_size
        passes = range(first // images, (first + self.batch_size - 1) // images + 1)
        orders = [self._generator(0, number).permutation(images) for number in passes]
        start = first - passes.start * images
        return np.concatenate(orders)[start : start + self.batch_size].tolist()

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_STREAM, *purpose)))

    def __getitem__(self, step: int) -> dict[str, Any]:
        rows = self.rows(step)
        seeds = self._generator(1, step).integers(2**62, size=len(rows)).tolist()
        items = [_item(self, int(self.positions[row]), seed) for row, seed in zip(rows, seeds, strict=True)]
        return collate([item | {"labels": int(self.labels[row])} for item, row in zip(items, rows, strict=True)])

    def picture(self, position: int, seed: int) -> Image.Image:
        """The picture of a row; what is random in it comes from the seed."""
        image = self.load_image(position)
        if not self.crops:
            return self.preprocessing.resize(image)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at every kind of device
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
        """The resized picture; nothing in it is random."""
        return self.preprocessing.resize(self.load_image(position))


def _item(dataset: TrainingSteps | PlainImages, position: int, seed: int) -> dict[str, Any]:
    try:
        pixels = dataset.preprocessing.to_tensor(dataset.picture(position, seed))
    except ImageError as error:
        return {"sample_id": position, "fault": str(error)}
    return {"sample_id": position, "images": pixels}


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of the readable items, with `faults` [(position, reason)] of the others."""
    sound = [item for item in items if "fault" not in item]
    batch: dict[str, Any] = {
        name: torch.tensor([item[name] for item in sound], dtype=torch.int64) for name in ("labels", "sample_id")
    }
    # In a worker it stacks into shared memory at once.
    batch["images"] = default_collate([item["images"] for item in sound]) if sound else torch.empty(0)
    return batch | {"faults": [(item["sample_id"], item["fault"]) for item in items if "fault" in item]}


class _From(Sampler[int]):
    """Step numbers from one on, without end."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return count(self.first)


class TrainingStream:
    """The training batches, so many steps an epoch; workers go on into the next epoch while a step runs.

    After a resume in the middle of an epoch it gives the batches that are left of it.

    Args:
        data: The data module; its trainer tells how much of the epoch is done.
        dataset: Gives the batch of a step.
        steps: Steps of an epoch.
    """

    def __init__(self, data: ImageCollection, dataset: TrainingSteps, steps: int) -> None:
        self.data, self.dataset = data, dataset
        self.steps, self.epoch = steps, 0
        self._batches: Iterator[dict[str, Any]] = iter(())
        self._next = -1

    @property
    def sampler(self) -> TrainingStream:
        """Where Lightning tells the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Go to another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        loop = getattr(self.data.trainer, "fit_loop", None)
        done = 0 if loop is None else loop.epoch_loop.batch_progress.current.completed
        begin = self.epoch * self.steps
        first = begin + (done if done < self.steps else 0)
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
        loader: Gives batches with `faults`.
        data: Told of unreadable images.
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
    """The batch without its `faults`, of which the data module is told in the main process; none if it is empty."""
    for position, reason in batch.pop("faults"):
        data.unreadable(position, reason)
    if len(batch["labels"]):
        yield batch | {"view": torch.zeros_like(batch["labels"])}


def stream_plain(data: ImageCollection, images: Positions) -> Streamed:
    """Every image once, plain, with workers; only a few batches are in memory at a time."""
    dataset = PlainImages(data, images)
    return Streamed(DataLoader(dataset, batch_size=TEST_BATCH, collate_fn=collate, **_workers(data)), data)


def _workers(data: ImageCollection) -> dict[str, Any]:
    workers = data.num_workers
    return {"num_workers": workers, "prefetch_factor": 2 if workers else None}
