"""Index of (path, label) -> episodes -> batches: the only place that samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from ..errors import DtrapError, check_at_least
from ..keywords import Unpack, check_keywords
from .all_way import AllWay, Streamed, TrainingSteps, TrainingStream, stream_plain
from .batches import Batch, Batches, MiniBatches, Views, decode, split_batch, to_batch
from .collection import CollectionOptions, ImageCollection, OnFault
from .images import ImageError
from .index import ImageIndex
from .subset import Subset, choose_subset
from .views import Preprocessing, check_views, draw_views

__all__ = ["AllWay", "Batch", "Batches", "FewShotDataModule", "ImageIndex", "OnFault", "Task"]

QUERY_BATCH = 128

# What the numbers of an episode are drawn for (second part of the seed's spawn key).
_CLASSES, _IMAGES, _VIEWS, _OTHER, _BATCHES = range(5)


class EpisodeOptions(TypedDict, total=False):
    """Arguments of `FewShotDataModule` that any source of episodes can pass on."""

    way: int
    shot: int
    query: int
    views: int
    seed: int
    episode: int
    batch_size: int | None


class FewShotOptions(EpisodeOptions, CollectionOptions, total=False):
    """All arguments of `FewShotDataModule` but `root`."""

    all_way: AllWay | None
    subset: str | Path | None


@dataclass(frozen=True)
class Task:
    """What one episode is made of.

    Lists have one entry per class of the task; images are positions in the index.

    Attributes:
        classes: Index into `ImageIndex.class_names` of each class.
        support: Support images of each class.
        query: Query images of each class.
        spare: Images that take the place, in this order, of unreadable ones.
        query_spare: The same for queries, where those come from a split of their own; None where `spare` serves both.
    """

    classes: list[int]
    support: list[list[int]]
    query: list[list[int]]
    spare: list[list[int]]
    query_spare: list[list[int]] | None = None


class FewShotDataModule(ImageCollection):
    """N-way K-shot episodes of an image collection; episode k is the same in any order and on any machine.

    A subclass says where the files are (`scan`). An episode's images are decoded once. A batch is a
    dictionary of `images` [B, 3, S, S] (float32, normalised), `labels` [B] (0..way-1), `view` [B] (0 is
    plain) and `sample_id` [B] (position in the index). The support batch has V*M rows: view slowest, then
    class, then shot.

    Everything random of episode e comes from numpy's SeedSequence(seed, spawn_key=(e, purpose)); a view also
    depends on the position of its image, never on the order of decoding.

    Args:
        root: Folder of the data set.
        way: Classes per episode W.
        shot: Support images per class K.
        query: Query images per class; 0 for none.
        views: Fixed views V of each support image, 1 (plain) to 5.
        seed: Seed of all episodes.
        episode: Number of the current episode.
        batch_size: Support rows of a training step, drawn anew in every epoch; None for all of them.
        all_way: All classes, `shot` images of each and the whole test split, one task per seed, in place of episodes;
            `way`, `query`, `views`, `seed` and `batch_size` play no part then.
        subset: All-way: a JSON file with the images of every seed, as a run leaves it, in place of drawn ones.
        **options: Arguments of `ImageCollection`.

    Attributes:
        tasks: How many episodes there can be; None for any number.
        own_images: Whether these are a user's own images, known by their folder rather than by a title.
        fixed_views: Whether a row of the support batch is the same picture at every step of an episode, so
            that features of a frozen tower may be kept.
        fixed_numbers: Whether every class needs exactly its numbers of images; otherwise unreadable ones may
            be left out without a replacement.

    Raises:
        DtrapError: An argument is out of range.
    """

    tasks: int | None = None
    own_images = False
    fixed_views = True
    fixed_numbers = True

    def __init__(
        self,
        root: str | Path,
        *,
        way: int = 5,
        shot: int = 5,
        query: int = 15,
        views: int = 5,
        seed: int = 1,
        episode: int = 0,
        batch_size: int | None = None,
        all_way: AllWay | None = None,
        subset: str | Path | None = None,
        **options: Unpack[CollectionOptions],
    ) -> None:
        check_keywords(self, options, CollectionOptions)
        super().__init__(root, **options)
        check_views(views)
        for name, value, least in (("way", way, 2), ("shot", shot, 1), ("query", query, 0), ("seed", seed, 0)):
            check_at_least(name, value, least)
        if batch_size is not None:
            check_at_least("batch_size", batch_size, 1)
        self.way, self.shot, self.query_shot, self.views = way, shot, query, views
        self.seed = seed
        self.batch_size, self.query_views = batch_size, 1
        if all_way is not None:
            all_way.check()
        self.all_way = all_way
        self.subset_file = None if subset is None else Path(subset).expanduser()
        if subset is not None and all_way is None:
            raise DtrapError(
                f"subset is {subset}, but only the all-way protocol has one: set all_way, or leave it out."
            )
        self._subsets: dict[int, Subset] = {}
        if all_way is not None:
            self.tasks, self.fixed_views = len(all_way.seeds), False
            if all_way.validation:  # else Lightning must not find a validation loader at all
                self.val_dataloader = self.validation_batches  # type: ignore[method-assign]
        self.set_episode(episode)

    def draw_task(self) -> Task:
        """Classes and images of the current episode, drawn without replacement.

        Where the data set has a published split, support images are drawn from "train" and queries from "test".
        """
        if self.all_way is not None:
            subset = self.subset
            return Task(subset.classes, subset.train, subset.test, spare=[[] for _ in subset.classes])
        classes = self._generator(_CLASSES).choice(self.usable_classes, size=self.way, replace=False)
        rng = self._generator(_IMAGES)
        if self.index.splits is not None:
            train, test = self.positions_in("train"), self.positions_in("test")
            training = [rng.permutation(train[label]).tolist() for label in classes]
            testing = [rng.permutation(test[label]).tolist() for label in classes]
            return Task(
                classes=classes.tolist(),
                support=[order[: self.shot] for order in training],
                query=[order[: self.query_shot] for order in testing],
                spare=[order[self.shot :] for order in training],
                query_spare=[order[self.query_shot :] for order in testing],
            )
        orders = [rng.permutation(self.positions[label]).tolist() for label in classes]
        end = self.shot + self.query_shot
        return Task(
            classes=classes.tolist(),
            support=[order[: self.shot] for order in orders],
            query=[order[self.shot : end] for order in orders],
            spare=[order[end:] for order in orders],
        )

    @cached_property
    def usable_classes(self) -> list[int]:
        """Classes with enough images to be drawn.

        Raises:
            DtrapError: A class has too few (unless `small_classes` is "skip"), or fewer than `way` are left.
        """
        needed = self.shot + self.query_shot
        if self.index.splits is None:
            counts = [len(found) for found in self.positions]
        else:  # what both splits have enough of counts as enough
            parts = ((self.positions_in("train"), self.shot), (self.positions_in("test"), self.query_shot))
            least = zip(*([min(len(found), most) for found in positions] for positions, most in parts), strict=True)
            counts = [sum(numbers) for numbers in least]
        usable = self.large_classes(counts, needed, f"shot {self.shot} + query {self.query_shot}")
        if len(usable) < self.way:
            raise DtrapError(
                f"{self.title}: way is {self.way}, but only {len(usable)} classes under {self.root} have "
                f"{needed} images or more. Set data.way to at most {len(usable)} or lower shot and query."
            )
        return usable

    def set_episode(self, episode: int) -> None:
        """Go to another episode; what was decoded of the last one is discarded."""
        check_at_least("episode", episode, 0)
        if self.all_way is not None:
            if episode >= len(self.all_way.seeds):
                raise DtrapError(f"episode is {episode}, but all_way.seeds are {self.all_way.seeds}.")
            self.seed = self.all_way.seeds[episode]
        self.episode = episode
        self._discard()

    def _discard(self) -> None:
        self._task: Task | None = None
        self._spare: list[Iterator[int]] = []
        self._query_spare: list[Iterator[int]] = []
        self._support: Batch | None = None
        self._query: Batch | None = None
        self._moved: dict[tuple[torch.device, torch.dtype], Batch] = {}

    def setup(self, stage: str | None = None) -> None:
        """Take the backbone's preprocessing and the tuner's query views; check that the episode can be drawn."""
        module = getattr(self.trainer, "lightning_module", None)
        preprocessing = Preprocessing.of(getattr(module, "backbone", None)) or self.preprocessing
        query_views = min(getattr(module, "query_views", 1), self.views)
        if (preprocessing, query_views) != (self.preprocessing, self.query_views):
            self.preprocessing, self.query_views = preprocessing, query_views
            self._discard()
        self.task  # noqa: B018

    @property
    def subset(self) -> Subset:
        """All-way: the images of the current seed.

        Raises:
            DtrapError: A class has no training image, or the subset file does not fit.
        """
        return self.subset_of(self.seed)

    def subset_of(self, seed: int) -> Subset:
        """All-way: the images of a seed, from the subset file where there is one."""
        if seed not in self._subsets:
            self._subsets[seed] = choose_subset(self, self.shot, seed, self.subset_file)
        return self._subsets[seed]

    @cached_property
    def fingerprint(self) -> str:
        """Tells whether two runs saw the same files, and the same subset file where one is given."""
        files = self.index.fingerprint()
        if self.all_way is None or self.subset_file is None:
            return files
        chosen = str([self.subset_of(seed) for seed in self.all_way.seeds])
        return f"{files}-{hashlib.sha256(chosen.encode()).hexdigest()[:16]}"

    @property
    def task(self) -> Task:
        """Classes and images of the current episode."""
        if self._task is None:
            self._task = self.draw_task()
            self._spare = [iter(spare) for spare in self._task.spare]
            queries = self._task.query_spare
            self._query_spare = self._spare if queries is None else [iter(spare) for spare in queries]
        return self._task

    @property
    def class_names(self) -> list[str]:
        """Names of the current episode's classes, in the order of the labels 0..W-1."""
        return [self.index.class_names[label] for label in self.task.classes]

    @property
    def description(self) -> str:
        """Title, way and shot, as in "ISIC 5-way 5-shot"."""
        return f"{self.title} {self.protocol}"

    @property
    def protocol(self) -> str:
        """Way and shot, as in "5-way 5-shot" or "all-way 16-shot"."""
        return f"{'all' if self.all_way is not None else self.way}-way {self.shot}-shot"

    @property
    def unit(self) -> str:
        """What a task is counted as: "episode", or "seed" in the all-way protocol."""
        return "episode" if self.all_way is None else "seed"

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch with the full batch: `shot`, as in the authors' protocol."""
        return self.shot

    @property
    def has_query(self) -> bool:
        """Whether there are images to measure an accuracy on."""
        return self.all_way is not None or self.query_shot > 0

    @property
    def support_ids(self) -> list[int]:
        """Positions in the index of the M support images, class by class."""
        if self.bad_images == "skip" and self.all_way is None:
            return _plain_ids(self.support())
        return [position for positions in self.task.support for position in positions]

    @property
    def query_ids(self) -> list[int]:
        """Positions in the index of the query images, class by class."""
        if self.bad_images == "skip" and self.all_way is None and self.has_query:
            return _plain_ids(self.query())
        return [position for positions in self.task.query for position in positions]

    def support(self) -> Batch:
        """The support batch of V*M rows on the CPU, decoded at the first call of an episode."""
        if self._support is None:
            self._support = self._decode(self.task.support, self.views, 1, self._spare)
        return self._support

    def query(self) -> Batch:
        """The query batch (plain views) on the CPU, decoded at the first call of an episode."""
        batch = self.query_in_views()
        return {name: column[: len(column) // self.query_views] for name, column in batch.items()}

    def query_in_views(self) -> Batch:
        """The query batch in `query_views` fixed views each, view slowest; the first one is plain."""
        if self._query is None:
            if self.bad_images == "skip":
                self.support()  # support images take their spares first
            self._query = self._decode(self.task.query, self.query_views, 0, self._query_spare)
        return self._query

    def train_dataloader(self) -> Batches | MiniBatches | TrainingStream:
        """One epoch: the full support batch, the same object at each of the `steps_per_epoch` steps.

        With `batch_size`, all support rows once in mini-batches. All-way: batches of an endless stream of the training
        images, shuffled and augmented anew, each drawn from (seed, step) alone.
        """
        if self.all_way is not None:
            steps = TrainingSteps(self, self.subset.train, self.seed, self.all_way)
            return TrainingStream(self, steps, self.steps_per_epoch)
        if self.batch_size is not None:
            return MiniBatches(self.support(), self.batch_size, self._row_order)
        return Batches([self.support()] * self.steps_per_epoch)

    def support_batches(self) -> Iterable[Batch]:
        """All support rows once, plain ones of the all-way protocol: what a tuner may look at before its first step."""
        return [self.support()] if self.all_way is None else stream_plain(self, self.subset.train)

    def validation_batches(self) -> Streamed:
        """All-way: min(K, 4) images per class, plain; the validation loader where `all_way.validation` is set."""
        return stream_plain(self, self.subset.val)

    def test_dataloader(self) -> Batches | Streamed | list[Batch]:
        """Every query image once, in all its views; an empty list where there is none."""
        if self.all_way is not None:
            return stream_plain(self, self.subset.test)
        return split_batch(self.query_in_views(), QUERY_BATCH, self.query_views) if self.has_query else []

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; the support batch is moved once per episode and device."""
        # Recognised by its ids, since a precision plugin may have rebuilt the dictionary around them.
        ids = batch.get("sample_id") if isinstance(batch, dict) else None
        if self._support is None or ids is not self._support["sample_id"]:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        key = (device, batch["images"].dtype)
        if key not in self._moved:
            self._moved[key] = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return self._moved[key]

    def episode_seed(self, purpose: str) -> int:
        """A seed below 2**31 for something else that is random in the current episode, such as a tuner's start."""
        episode = self.episode if self.all_way is None else 0  # whichever of the seeds it is
        sequence = np.random.SeedSequence(self.seed, spawn_key=(episode, _OTHER, *purpose.encode()))
        return int(sequence.generate_state(1)[0] >> 1)

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.episode, *purpose)))

    def _draw_views(self, views: int, position: int) -> Views:
        rng = self._generator(_VIEWS, position)
        return draw_views(self.load_image(position), self.preprocessing, views, rng)

    def _row_order(self, epoch: int, rows: int) -> np.ndarray:
        return self._generator(_BATCHES, epoch).permutation(rows)

    def _decode(
        self,
        images: list[list[int]],
        count: int,
        needed: int,
        spare: list[Iterator[int]],
    ) -> Batch:
        """Batch of so many views of the images of each class; spares take the place of unreadable ones."""
        chosen = images
        views: dict[int, Views] = {}
        faults: dict[int, ImageError] = {}
        while waiting := [p for positions in chosen for p in positions if p not in views]:
            for position, result in decode(waiting, partial(self._draw_views, count), self.num_workers).items():
                if isinstance(result, ImageError):
                    faults[position] = result
                else:
                    views[position] = result
            chosen = [self._replace(label, p, faults, spare) for label, p in enumerate(chosen)]
        for label, positions in enumerate(chosen):
            if len(positions) < needed:
                raise self._too_few_readable(label)
        if not any(chosen):
            raise DtrapError(f"{self.title}: none of the query images can be read. Replace them.")
        # A test may be the first to ask for the support, in inference mode, whose tensors no training can use.
        with torch.inference_mode(False):
            return to_batch(chosen, views, self.preprocessing)

    def _replace(
        self, label: int, positions: list[int], faults: dict[int, ImageError], spares: list[Iterator[int]]
    ) -> list[int]:
        """Positions of a class, unreadable ones replaced, or left out where numbers need not be equal."""
        kept: list[int] = []
        for position in positions:
            if position not in faults:
                kept.append(position)
                continue
            if self.bad_images == "error":
                raise DtrapError(
                    f"{faults[position]} It belongs to episode {self.episode} of {self.title}. "
                    "Replace the file, or leave unreadable images out with bad_images: skip."
                ) from faults[position]
            self._skip(self.index.paths[position], str(faults[position]))
            spare = next(spares[label], None)
            if spare is not None:
                kept.append(spare)
            elif self.fixed_numbers:
                raise self._too_few_readable(label)
        return kept

    def _too_few_readable(self, label: int) -> DtrapError:
        return DtrapError(
            f"{self.title}: too few readable images of class '{self.class_names[label]}' for episode "
            f"{self.episode}; unreadable, among others: {self.skipped_images[-1][0]}. Replace it or add some."
        )


def _plain_ids(batch: Batch) -> list[int]:
    return batch["sample_id"][batch["view"] == 0].tolist()
