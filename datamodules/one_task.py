"""One task over all classes and images, with the images to test on held out, from a split or from a second folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DtrapError
from .episode import Task
from .held_out import hold_out, hold_out_groups
from .index import listing
from .sampler import CLASSES, OTHER, EpisodeSampler

if TYPE_CHECKING:
    from .folder import FolderDataModule


class OneTaskSampler(EpisodeSampler):
    """One task over all classes and images; with `repeats`, one task for each draw of the held-out images.

    Args:
        data: The images. Those to train on, to validate on and to test on are its `own_positions`,
            `validation_positions` and `query_positions`, of each class.
        seed: Seed of the views and of what is held out.
        batch_size: Support rows of a training step; None for all of them.
        drop_last: Whether an incomplete last mini-batch of an epoch is dropped.
        validation_shots: Images of each class, or of its validation split, to validate on; 0 for the whole split. Those
            of a class without a split are taken from the training images, of which at least one remains.
    """

    data: FolderDataModule

    def __init__(
        self, data: FolderDataModule, seed: int, batch_size: int | None, drop_last: bool, validation_shots: int = 0
    ) -> None:
        super().__init__(
            data,
            way=2,
            shot=1,
            query=0,
            seed=seed,
            batch_size=batch_size,
            drop_last=drop_last,
            validation_shots=validation_shots,
        )
        self.tasks = data.repeats or 1
        self.description = "one task" if data.repeats is None else f"{data.repeats} x held-out {data.held_out}"
        self.unit = "task" if data.repeats is None else "repeat"
        # Of images that have a split, the index says whether there are some to test on: see FolderDataModule.
        self.has_query = data.query_root is not None or data.held_out is not None

    def draw(self, number: int) -> Task:
        """Return all classes; support and query images as the folders, the splits or the held-out share say."""
        data, own = self.data, self.data.own_positions
        usable = data.large_classes([len(found) for found in own], 1, "for the support")
        if len(usable) < 2:
            raise DtrapError(
                f"{data.root} has images of {len(usable)} class(es); expected 2 or more folders of images."
            )
        images, validation = [own[label] for label in usable], data.validation_positions
        query = [data.query_positions[label].tolist() for label in usable]
        if data.held_out is not None:
            query = self._held_out(number, images)
        # All images of the class but those held out, in the order of the index.
        support = [
            np.setdiff1d(found, held, assume_unique=True).tolist() for found, held in zip(images, query, strict=True)
        ]
        held_back = None if validation is None else [validation[label].tolist() for label in usable]
        if self.validation_shots:
            support, held_back = self._validation(number, support, held_back)
        task = Task(usable, support, query, spare=[[] for _ in usable], validation=held_back)
        self._check(task)
        return task

    @property
    def validates(self) -> bool:
        """Whether there is a validation loader: validation images are asked for, or the images have such a split."""
        return self.validation_shots > 0 or self.data.validation_positions is not None

    def _validation(
        self, number: int, support: list[list[int]], split: list[list[int]] | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return what remains to train on, and `validation_shots` images of each class to validate on.

        Raises:
            DtrapError: No image can be spared.
        """
        rng, shots = self.generator(number, OTHER, *b"validation"), self.validation_shots
        if split is not None:
            return support, [np.sort(rng.permutation(found)[:shots]).tolist() for found in split]
        images, groups = [np.asarray(found) for found in support], self.data.index.groups
        most = [min(shots, len(found) - 1) for found in images]
        if groups is None:
            chosen = [
                np.sort(rng.permutation(found)[:count]).tolist() for found, count in zip(images, most, strict=True)
            ]
        else:
            share = shots * len(images) / max(sum(map(len, images)), 1)
            chosen = hold_out_groups(images, groups, min(share, 0.9), rng)
        if not any(chosen):
            raise DtrapError(
                f"{self.data.title}: no image can be spared for validation (validation_shots is {shots}). Add images, "
                "or leave --data.validation_shots out."
            )
        rest = [[each for each in found if each not in set(held)] for found, held in zip(support, chosen, strict=True)]
        return rest, chosen

    def row_order(self, rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
        """Return the rows of an epoch; with `balanced_batches` drawn with replacement, each class equally often."""
        if not self.data.balanced_batches:
            return super().row_order(rng, labels)
        counts = np.bincount(labels)
        chances = 1 / counts[labels]
        return rng.choice(len(labels), size=len(labels), p=chances / chances.sum())

    def _held_out(self, number: int, images: Sequence[np.ndarray]) -> list[list[int]]:
        groups, share = self.data.index.groups, self.data.held_out or 0
        rng = self.generator(number, CLASSES)
        if groups is None:
            return hold_out(images, share, rng)
        return hold_out_groups(images, groups, share, rng)

    def _check(self, task: Task) -> None:
        """Say which classes have no test image; raise a DtrapError where none has."""
        data, names = self.data, self.data.index.class_names
        if not data.has_query:
            return
        untested = [names[label] for label, query in zip(task.classes, task.query, strict=True) if not query]
        if not any(task.query):
            counts = [len(found) for found in data.own_positions]
            raise DtrapError(
                f"held_out {data.held_out} leaves no query image: the classes under {data.root} have {min(counts)} to "
                f"{max(counts)} images{'' if data.index.groups is None else ' in groups'}. Raise it, or give a "
                "query_root."
            )
        if untested:
            data.warn_once(f"no test image, so the accuracy does not cover them: {listing(untested)}")
