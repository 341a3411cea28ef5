"""Drawing tasks from a collection of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial

import numpy as np

from ..errors import DtrapError, check_at_least
from .batches import Batch, Batches, FullBatches, MiniBatches, Share, batches_done, split_batch
from .collection import ImageCollection
from .episode import Episode, Task
from .grouped_draws import separable_classes, task_apart
from .groups import Side
from .subset import Subset
from .validation import with_validation

QUERY_BATCH = 128

# What the numbers of an episode are drawn for (second part of the seed's spawn key).
CLASSES, IMAGES, VIEWS, OTHER, BATCHES = range(5)
GROUPS = 16  # far from the numbers that may follow


class TaskSampler(ABC):
    """Draws the tasks of a run and arranges their images in batches.

    Args:
        data: The images.
        shot: Support images per class K.

    Attributes:
        unit: What a task is counted as, such as "episode".
        description: Way and shot, as in "5-way 5-shot" or "all-way 16-shot".
        has_query: Whether there are images to measure an accuracy on.
        tasks: Number of tasks; None for any number.
        streams: Whether images are decoded while they are used, because a task has too many to hold.
        fixed_views: Whether a row of the support batch is the same picture at every step of a task, so that features
            of a frozen tower can be cached.
        full_batch: Whether each training batch is the whole support batch, the same in every step.
        batch_size: Rows of a training step; None for all of them. It may be changed between fits.
        seeds: Seed of each task, where tasks differ in their seed alone.
        validation_option: The option that asks for validation.
        rank: Number of this process among those that share the work.
        world_size: Number of these processes. Process r gets rows r, r + world_size, ... of each training batch and of
            all test and validation images. `support_batches` are whole in every process.
    """

    unit: str
    description: str
    has_query: bool
    tasks: int | None = None
    streams = False
    fixed_views = True
    full_batch = True
    batch_size: int | None
    seeds: Sequence[int] = ()
    validation_option = "--data.validation_shots 4"

    def __init__(self, data: ImageCollection, shot: int) -> None:
        self.data, self.shot = data, shot
        self.rank, self.world_size = 0, 1

    @property
    def validates(self) -> bool:
        """Whether there is a validation loader."""
        return False

    @abstractmethod
    def seed_of(self, number: int) -> int:
        """Return the seed of a task.

        Raises:
            DtrapError: There are fewer tasks.
        """

    @abstractmethod
    def draw(self, number: int) -> Task:
        """Draw classes and images of a task.

        Raises:
            DtrapError: There are too few classes or images.
        """

    def subset_of(self, seed: int) -> Subset:
        """Return the images of a seed.

        Raises:
            DtrapError: Tasks are not drawn by seed.
        """
        raise DtrapError(f"{self.data.title}: episodes have no subsets; use --config all_way/clip_lora.yaml.")

    def images_of(self, number: int) -> set[int]:
        """Return the positions in the index of all images of a task."""
        task = self.draw(number)
        return {p for of_class in (*task.support, *task.query, *(task.validation or ())) for p in of_class}

    @property
    def fingerprint(self) -> str:
        """Text that changes with the images that a file prescribes; empty where all are drawn."""
        return ""

    @property
    def share(self) -> Share:
        """Rows that this process gets."""
        return Share(self.rank, self.world_size)

    def generator(self, number: int, *purpose: int) -> np.random.Generator:
        """Return the generator of a task for a purpose."""
        return np.random.default_rng(np.random.SeedSequence(self.seed_of(number), spawn_key=(number, *purpose)))

    def other_seed(self, number: int, purpose: str) -> int:
        """Return a seed below 2**31 for something else that is random in a task, such as a tuner's start."""
        # A task that has a seed of its own gets the same numbers wherever it is in the list of seeds.
        key = 0 if self.seeds else number
        sequence = np.random.SeedSequence(self.seed_of(number), spawn_key=(key, OTHER, *purpose.encode()))
        return int(sequence.generate_state(1)[0] >> 1)

    @abstractmethod
    def train_batches(self, episode: Episode, steps: int) -> Iterable[Batch]:
        """Return the loader of one training epoch.

        Args:
            episode: The current task.
            steps: Steps of an epoch with the full batch.
        """

    @abstractmethod
    def support_batches(self, episode: Episode) -> Iterable[Batch]:
        """Return all support rows once, which a tuner may look at before its first step."""

    @abstractmethod
    def test_batches(self, episode: Episode) -> Iterable[Batch]:
        """Return every query image once."""

    def validation_batches(self, episode: Episode) -> Iterable[Batch]:
        """Return every validation image once."""
        return []


class EpisodeSampler(TaskSampler):
    """N-way K-shot episodes.

    All random numbers of episode e come from numpy's SeedSequence(seed, spawn_key=(e, purpose)), so that an episode is
    the same in any order and on any machine.

    Args:
        data: The images.
        way: Classes per episode W.
        shot: Support images per class K.
        query: Query images per class; 0 for none.
        seed: Seed of all episodes.
        batch_size: Support rows of a training step; None for all of them.
        drop_last: Whether an incomplete last mini-batch of an epoch is dropped.
        validation_shots: Validation images per class; support and query images do not depend on it.
    """

    unit = "episode"

    def __init__(
        self,
        data: ImageCollection,
        way: int,
        shot: int,
        query: int,
        seed: int,
        batch_size: int | None,
        drop_last: bool = True,
        validation_shots: int = 0,
    ) -> None:
        super().__init__(data, shot)
        check_at_least("validation_shots", validation_shots, 0)
        self.validation_shots = validation_shots
        for name, value, least in (("way", way, 2), ("shot", shot, 1), ("query", query, 0), ("seed", seed, 0)):
            check_at_least(name, value, least)
        self.way, self.query, self.seed, self.batch_size = way, query, seed, batch_size
        self.drop_last = drop_last
        self.description, self.has_query = f"{way}-way {shot}-shot", query > 0

    @property
    def batch_size(self) -> int | None:
        """Support rows of a training step; None for all of them."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int | None) -> None:
        if size is not None:
            check_at_least("batch_size", size, 1)
        self._batch_size, self.full_batch = size, size is None

    @property
    def validates(self) -> bool:
        """Whether there is a validation loader."""
        return self.validation_shots > 0

    def seed_of(self, number: int) -> int:
        """Return the seed, which all episodes share."""
        return self.seed

    @cached_property
    def usable_classes(self) -> list[int]:
        """Classes with enough images to be drawn.

        Raises:
            DtrapError: A class has too few (unless `small_classes` is "skip"), or fewer than `way` are left.
        """
        data = self.data
        if data.index.splits is None:
            needed = f"{self.shot + self.query} images"
            counts = [len(found) for found in data.positions]
            usable = data.large_classes(counts, self.shot + self.query, f"shot {self.shot} + query {self.query}")
        else:  # a surplus of one split cannot make up for a lack of the other
            needed = f"{self.shot} training and {self.query} test images"
            train, test = ([len(found) for found in data.positions_in(split)] for split in ("train", "test"))
            trained = data.large_classes(train, self.shot, f"shot {self.shot}", "training images")
            tested = data.large_classes(test, self.query, f"query {self.query}", "test images")
            usable = [label for label in trained if label in set(tested)]
        pools = [[pool[label].tolist() for label in usable] for pool in self._pools]
        usable = separable_classes(data, usable, pools, self._needed)
        if len(usable) < self.way:
            fewer = f"Use --data.way {len(usable)}, or lower" if len(usable) > 1 else "Lower"
            raise DtrapError(
                f"{data.title}: way is {self.way}, but only {len(usable)} classes under {data.root} have {needed} or "
                f"more. {fewer} --data.shot or --data.query."
            )
        return usable

    def draw(self, number: int) -> Task:
        """Draw classes and images of an episode without replacement.

        Where the data set has a published split, support images are drawn from "train", queries from "test" and
        validation images from "val"; where a class has none there, from the rest of "train".
        """
        classes = self.generator(number, CLASSES).choice(self.usable_classes, size=self.way, replace=False).tolist()
        rng = self.generator(number, IMAGES)

        def shuffled(positions: list[np.ndarray]) -> list[list[int]]:
            return [rng.permutation(positions[label]).tolist() for label in classes]

        if self.data.group_of is not None:
            return self._draw_apart(number, classes, shuffled)
        if self.data.index.splits is None:
            support = shuffled(self.data.positions)
            query = [order[self.shot :] for order in support]
            spare, query_spare = [order[self.query :] for order in query], None
        else:
            support, query = (shuffled(self.data.positions_in(split)) for split in ("train", "test"))
            spare, query_spare = [order[self.shot :] for order in support], [order[self.query :] for order in query]
        first = [order[: self.shot] for order in support]
        task = Task(classes, first, [order[: self.query] for order in query], spare, query_spare)
        if not self.validates:
            return task
        published = None if self.data.index.splits is None else shuffled(self.data.positions_in("val"))
        return with_validation(self.data, task, self.validation_shots, published)

    @property
    def _pools(self) -> list[list[np.ndarray]]:
        """The images of each class that support, query and, if there are any, validation images are drawn from."""
        if self.data.index.splits is None:
            return [self.data.positions] * len(self._needed)
        train, test = self.data.positions_in("train"), self.data.positions_in("test")
        val = [own if len(own) else more for own, more in zip(self.data.positions_in("val"), train, strict=True)]
        return [train, test, val][: len(self._needed)]

    @property
    def _needed(self) -> list[tuple[str, int]]:
        validation = [("validation", self.validation_shots)] if self.validates else []
        return [("support", self.shot), ("query", self.query), *validation]

    def _draw_apart(
        self, number: int, classes: list[int], shuffled: Callable[[list[np.ndarray]], list[list[int]]]
    ) -> Task:
        """Draw the images so that no group of images is on two sides."""
        published = self.data.index.splits is not None
        orders = [shuffled(pool) for pool in (self._pools if published else self._pools[:1])]
        orders *= 1 if published else len(self._needed)
        sides = [Side(order, [count] * self.way) for order, (_, count) in zip(orders, self._needed, strict=True)]
        name = f"{self.unit} {number}"
        return task_apart(self.data, classes, sides, self._needed, self.generator(number, GROUPS), name)

    def train_batches(self, episode: Episode, steps: int) -> FullBatches | MiniBatches:
        """Return the full support batch, the same object at each step, or all its rows once in mini-batches."""
        if self.batch_size is None:
            return FullBatches([episode.support_share(self.share)] * steps, episode.preprocessing)

        done, size = partial(batches_done, self.data), self.batch_size
        share, support = self.share, episode.support()

        def order(epoch: int, rows: int) -> np.ndarray:
            return self.row_order(self.generator(episode.number, BATCHES, epoch), support["labels"].numpy())

        return MiniBatches(support, size, order, episode.preprocessing, self.drop_last, done, share)

    def row_order(self, rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
        """Return the numbers of the rows of one epoch of mini-batches, given the label of each row."""
        return rng.permutation(len(labels))

    def support_batches(self, episode: Episode) -> Batches:
        """Return the support batch."""
        return Batches([episode.support()], episode.preprocessing)

    def test_batches(self, episode: Episode) -> Batches:
        """Return every query image once, in all its views."""
        query = episode.query_in_views()
        return split_batch(query, QUERY_BATCH, episode.query_views, self.share, episode.preprocessing)

    def validation_batches(self, episode: Episode) -> Batches:
        """Return every validation image once, in as many views as a test image."""
        images = episode.validation_in_views()
        return split_batch(images, QUERY_BATCH, episode.query_views, self.share, episode.preprocessing)
