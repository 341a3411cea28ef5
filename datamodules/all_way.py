"""The all-way protocol: K images of every class, mini-batches and the whole test split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import DtrapError, check_at_least, check_one_of
from .batches import Batch
from .collection import ImageCollection
from .episode import Episode, Task
from .sampler import TaskSampler
from .streams import Streamed, TrainingSteps, TrainingStream, stream_plain
from .subset import Subset, choose_subset


@dataclass
class AllWay:
    """All classes, K images of each, one task per seed, as in CoOp and CLIP-LoRA.

    Args:
        seeds: One task each. For a given seed, a class's images do not depend on the other classes. They are not CoOp's
            own images, which another generator draws.
        batch_size: Images of a training step.
        augmentation: "crop" is RandomResizedCrop (scale 0.08 to 1, bicubic) and a horizontal flip, drawn again in every
            step; "plain" is the plain view.
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
        check_at_least("all_way.batch_size", self.batch_size, 1)
        check_one_of("all_way.augmentation", self.augmentation, ("crop", "plain"))


_OF_EPISODES: dict[str, Any] = {
    "way": 5,
    "query": 15,
    "views": 5,
    "seed": 1,
    "batch_size": None,
    "validation_shots": 0,
}
_INSTEAD = {
    "seed": "--data.all_way.seeds [{}]",
    "batch_size": "--data.all_way.batch_size {}",
    "validation_shots": "--data.all_way.validation true",
}


def refuse_episode_options(given: Mapping[str, Any]) -> None:
    """Raise a DtrapError for an option of episodes that differs from its default: it has no effect here."""
    for name, value in given.items():
        default = _OF_EPISODES[name]
        if value != default:
            instead = f" and give {_INSTEAD[name].format(value)}" if name in _INSTEAD else ""
            shown = "null" if default is None else default
            raise DtrapError(
                f"{name} is {value}, which has no effect in the all-way protocol. Set --data.{name} {shown}{instead}."
            )


class AllWaySampler(TaskSampler):
    """One task per seed: K training images of every class, and the whole test split.

    Args:
        data: The images.
        shot: Training images per class K.
        settings: Seeds and batches.
        file: Subset file with the images of every seed; None to draw them.
    """

    unit = "seed"
    streams = True
    fixed_views = False
    full_batch = False
    has_query = True
    validation_option = "--data.all_way.validation true"

    def __init__(self, data: ImageCollection, shot: int, settings: AllWay, file: Path | None) -> None:
        super().__init__(data, shot)
        settings.check()
        self.settings, self.file = settings, file
        self.seeds, self.tasks = settings.seeds, len(settings.seeds)
        self.description = f"all-way {shot}-shot"
        self._subsets: dict[int, Subset] = {}

    @property
    def batch_size(self) -> int:
        """Images of a training step."""
        return self.settings.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self.settings = replace(self.settings, batch_size=size)
        self.settings.check()

    @property
    def validates(self) -> bool:
        """Whether there is a validation loader."""
        return self.settings.validation

    def seed_of(self, number: int) -> int:
        """Return the seed of a task."""
        if number >= len(self.seeds):
            raise DtrapError(f"episode is {number}, but all_way.seeds are {self.seeds}.")
        return self.seeds[number]

    def subset_of(self, seed: int) -> Subset:
        """Return the images of a seed, from the subset file if there is one.

        Raises:
            DtrapError: A class has no training image, or the subset file does not fit.
        """
        if seed not in self._subsets:
            self._subsets[seed] = choose_subset(self.data, self.shot, seed, self.file)
        return self._subsets[seed]

    @property
    def fingerprint(self) -> str:
        """Digest of what the subset file prescribes; empty without a file."""
        if self.file is None:
            return ""
        chosen = str([self.subset_of(seed) for seed in self.seeds])
        return f"-{hashlib.sha256(chosen.encode()).hexdigest()[:16]}"

    def draw(self, number: int) -> Task:
        """Return the images of a seed as a task."""
        subset = self.subset_of(self.seed_of(number))
        return Task(subset.classes, subset.train, subset.test, spare=[[] for _ in subset.classes])

    def images_of(self, number: int) -> set[int]:
        """Return the positions in the index of all images of a seed, those of the validation included."""
        held = self.subset_of(self.seed_of(number)).val if self.validates else []
        return super().images_of(number).union(*held)

    def train_batches(self, episode: Episode, steps: int) -> TrainingStream:
        """Return batches of an endless stream of the training images, each drawn from (seed, step) alone."""
        seed, crops = self.seed_of(episode.number), self.settings.augmentation == "crop"
        dataset = TrainingSteps(self.data, episode.task.support, seed, self.settings.batch_size, crops, self.share)
        return TrainingStream(self.data, dataset, steps)

    def support_batches(self, episode: Episode) -> Iterable[Batch]:
        """Return every training image once, plain."""
        return stream_plain(self.data, episode.task.support)

    def validation_batches(self, episode: Episode) -> Streamed:
        """Return min(K, 4) images per class, plain."""
        images = self.subset_of(self.seed_of(episode.number)).val
        # A validation within a fit must not change what the next step draws.
        return stream_plain(self.data, images, self.share, torch.Generator())

    def test_batches(self, episode: Episode) -> Streamed:
        """Return every test image once, plain."""
        return stream_plain(self.data, episode.task.query, self.share)
