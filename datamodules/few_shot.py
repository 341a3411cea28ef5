"""Few-shot tasks of an image collection as a Lightning data module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..errors import DtrapError, check_at_least
from ..keywords import Unpack, check_keywords
from .all_way import AllWay, AllWaySampler, refuse_episode_options
from .batches import Batch
from .collection import CollectionOptions, ImageCollection, OnFault
from .episode import Episode, Task
from .grouped_draws import note_split_groups
from .image_check import check_images
from .index import ImageIndex
from .options import AnyShotOptions, EpisodeOptions
from .sampler import VIEWS, EpisodeSampler, TaskSampler
from .stage_checks import check_stage, no_validation
from .subset import Subset
from .views import Preprocessing, TestPreprocessing, check_views

__all__ = [
    "AllWay",
    "AnyShotOptions",
    "Batch",
    "Episode",
    "EpisodeOptions",
    "FewShotDataModule",
    "ImageIndex",
    "OnFault",
    "Task",
]


class FewShotDataModule(ImageCollection):
    """N-way K-shot episodes of an image collection; episode k is the same in any order and on any machine.

    A subclass says where the files are (`scan`). The images of an episode are decoded once. A batch is a dictionary of
    `images` [B, 3, S, S] (float32, normalized), `labels` [B] (0..way-1), `view` [B] (0 is plain) and `sample_id` [B]
    (position in the index). The support batch has V*M rows: view slowest, then class, then shot.

    The random numbers of an episode depend on its seed and number alone (see `EpisodeSampler`); those of a view also on
    the position of its image, never on the order of decoding.

    Args:
        root: Folder of the data set.
        way: Classes per episode W.
        shot: Support images per class K.
        query: Query images per class; 0 for none.
        views: Fixed views V of each support image, 1 (plain) to 5.
        seed: Seed of all episodes.
        episode: Number of the current episode.
        batch_size: Support rows of a training step, shuffled in every epoch; None for all of them.
        drop_last: Whether an incomplete last mini-batch of an epoch is dropped, as CoOp's authors do.
        validation_shots: Validation images per class, on which a tuner may choose and callbacks may decide; 0 for no
            validation. The support and query images do not depend on it.
        all_way: All classes, `shot` images of each and the whole test split, one task per seed, instead of episodes.
            Then `way`, `query`, `views`, `seed`, `batch_size` and `validation_shots` have no effect and keep their
            defaults.
        subset: All-way: a JSON file with the images of every seed, as written by a run, or a folder of 2SFS' few-shot
            draws. None to draw them.
        **options: Arguments of `ImageCollection`.

    Attributes:
        sampler: Draws the tasks and arranges their batches.
        unit: What a task is counted as: "episode", "seed" in the all-way protocol, "repeat" where one folder is
            divided several times, or "task" where it is the only one, so that none is counted.
        streams: Whether the images of a task are decoded while they are used, because there are too many to hold.
        fixed_views: Whether a row of the support batch is the same picture at every step, so that features of a frozen
            tower can be cached.
        own_images: Whether these are a user's own images, identified by their folder instead of a title.
        all_way_preprocessing: What `test_preprocessing` None stands for in the all-way protocol.
        fixed_numbers: Whether every class needs exactly its numbers of images; otherwise unreadable ones may be left
            out without a replacement.
        resampled: Whether tasks are draws of held-out images from the same data, whose results depend on each other.
        measures_auroc: Whether the area under the ROC curve is measured, as is usual for this data set. With two
            classes it always is.

    Raises:
        DtrapError: An argument is unknown or out of range.
    """

    own_images = False
    all_way_preprocessing: ClassVar[TestPreprocessing] = "backbone"
    fixed_numbers = True
    measures_auroc = False
    resampled = False
    _ahead: Episode | None = None

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
        drop_last: bool = True,
        validation_shots: int = 0,
        all_way: AllWay | None = None,
        subset: str | Path | None = None,
        **options: Unpack[CollectionOptions],
    ) -> None:
        check_keywords(self, options, CollectionOptions)
        super().__init__(root, **options)
        check_views(views)
        # Episodes are checked in both protocols, since the options have the same ranges.
        self.sampler: TaskSampler = EpisodeSampler(
            self, way, shot, query, seed, batch_size, drop_last, validation_shots
        )
        if all_way is not None:
            given = {"way": way, "query": query, "views": views, "seed": seed, "batch_size": batch_size}
            refuse_episode_options(given | {"validation_shots": validation_shots})
            file = None if subset is None else Path(subset).expanduser()
            self.sampler = AllWaySampler(self, shot, all_way, file)
        elif subset is not None:
            raise DtrapError(
                f"subset is {subset}, but only the all-way protocol has one. Choose it with --config "
                "all_way/clip_lora.yaml, or leave out --data.subset."
            )
        self.unit, self.streams, self.fixed_views = self.sampler.unit, self.sampler.streams, self.sampler.fixed_views
        self.way, self.shot, self.query_shot, self.views = way, shot, query, views
        self.drop_last, self.query_views = drop_last, 1
        self.set_episode(episode)

    def set_episode(self, episode: int) -> None:
        """Switch episodes and drop the decoded images."""
        check_at_least("episode", episode, 0)
        self.episode, self.seed = episode, self.sampler.seed_of(episode)
        self._current: Episode | None = None
        self.expect(None)

    def expect(self, episode: int | None) -> None:
        """Say which episode comes after the current one: its images are decoded in threads while this one trains.

        It has no effect where images are streamed, where an own `load_image` may not work in a thread (`num_workers` 0)
        or where the pictures would take more than half a gigabyte. Results do not depend on it. Errors and warnings of
        the images come out when that episode is used.

        Args:
            episode: Number of the episode; None to decode nothing ahead.
        """
        if self._ahead is not None and self._ahead.number != self.episode:
            self.decode_no_more()
        self._next = episode

    def decode_no_more(self) -> None:
        """End what is decoded ahead."""
        for episode in (self._ahead, self._current):
            if episode is not None:
                episode.forget_ahead()
        self._ahead = self._next = None

    def setup(self, stage: str | None = None) -> None:
        """Take the backbone's preprocessing and the tuner's query views; check that the episode can be drawn.

        Of a Trainer's several processes each takes its share of the images.
        """
        self.sampler.rank = getattr(self.trainer, "global_rank", 0)
        self.sampler.world_size = getattr(self.trainer, "world_size", 1)
        module = getattr(self.trainer, "lightning_module", None)
        preprocessing = Preprocessing.of(getattr(module, "backbone", None)) or self._preprocessing
        query_views = min(getattr(module, "query_views", 1), self.views)
        if preprocessing != self._preprocessing:
            self.preprocessing = preprocessing
        if query_views != self.query_views:
            self.query_views, self._current = query_views, None
        check_stage(self, stage)
        self.task  # noqa: B018

    @property
    def default_test_preprocessing(self) -> TestPreprocessing:
        """What `test_preprocessing` None stands for: what the authors of the protocol do."""
        return self.all_way_preprocessing if self.streams else "squash"

    def check_images(self, tasks: Iterable[int]) -> None:
        """Check that the images of tasks can be read, if unreadable ones are not left out.

        Images are opened, not decoded, where their format allows it. If one cannot be read, all images of the set are
        checked, so that the error lists all of them.

        Raises:
            DtrapError: Some cannot be read.
        """
        check_images(self, sorted(set().union(*map(self.sampler.images_of, tasks))))

    def note_split_groups(self, tasks: Iterable[int]) -> None:
        """Warn of groups of images on two sides of tasks, where they are known and nothing keeps them together."""
        self.index  # noqa: B018 - the groups are known once it is read
        if self.unused_groups is not None:
            note = note_split_groups(self, map(self.sampler.draw, tasks), self.unit)
            if note:
                self.warn_once(note)

    # The current task

    @property
    def current(self) -> Episode:
        """The current episode with its decoded images."""
        if self._current is None or self._current.preprocessing != self.preprocessing:
            ahead, wanted = self._ahead, (self.episode, self.query_views, self.preprocessing)
            if ahead is not None and (ahead.number, ahead.query_views, ahead.preprocessing) == wanted:
                self._current, self._ahead = ahead, None
            else:
                self._current = self._draw(self.episode)
        return self._current

    def _draw(self, number: int) -> Episode:
        views_generator = partial(self.sampler.generator, number, VIEWS)
        numbers = self.views, self.query_views, self.fixed_numbers
        return Episode(self, self.sampler.draw(number), number, views_generator, *numbers)

    def _decode_ahead(self) -> None:
        """Start with the next episode, once the current one is decoded."""
        number, self._next = self._next, None
        if number is None or self.streams or not (self.opens_files or self.num_workers):
            return
        with suppress(DtrapError):  # an episode that cannot be drawn is an error when it is used
            self._ahead = self._draw(number)
            self._ahead.decode_ahead()

    @property
    def task(self) -> Task:
        """Classes and images of the current episode."""
        return self.current.task

    @property
    def class_names(self) -> list[str]:
        """Names of the current episode's classes, in the order of the labels 0..W-1."""
        return [self.index.class_names[label] for label in self.task.classes]

    @property
    def untested_classes(self) -> list[str]:
        """Names of the current task's classes without a query image, which an accuracy does not cover."""
        return [name for name, query in zip(self.class_names, self.task.query, strict=True) if not query]

    @property
    def copied_queries(self) -> int:
        """Number of the current task's query images that are also support images, as far as it is known."""
        return 0

    @property
    def support_ids(self) -> list[int]:
        """Positions in the index of the M support images, class by class."""
        if self.bad_images == "skip" and not self.streams:
            return _plain_ids(self.support())
        return [position for positions in self.task.support for position in positions]

    @property
    def query_ids(self) -> list[int]:
        """Positions in the index of the query images, class by class."""
        if self.bad_images == "skip" and not self.streams and self.has_query:
            return _plain_ids(self.query())
        return [position for positions in self.task.query for position in positions]

    def support(self) -> Batch:
        """Return the support batch of V*M rows on the CPU, decoded at the first call of an episode."""
        return self.current.support()

    def query(self) -> Batch:
        """Return the query batch (plain views) on the CPU, decoded at the first call of an episode."""
        batch = self.query_in_views()
        return {name: column[: len(column) // self.query_views] for name, column in batch.items()}

    def query_in_views(self) -> Batch:
        """Return the query batch in `query_views` fixed views each, view slowest; the first view is plain."""
        return self.current.query_in_views()

    def episode_seed(self, purpose: str) -> int:
        """Return a seed below 2**31 for something else that is random in the current episode."""
        return self.sampler.other_seed(self.episode, purpose)

    # What the sampler says

    @property
    def tasks(self) -> int | None:
        """Number of episodes that there can be; None for any number."""
        return self.sampler.tasks

    @property
    def description(self) -> str:
        """Title, way and shot, as in "ISIC 5-way 5-shot"."""
        return f"{self.title} {self.protocol}"

    @property
    def protocol(self) -> str:
        """Way and shot, as in "5-way 5-shot" or "all-way 16-shot"."""
        return self.sampler.description

    @property
    def full_batch(self) -> bool:
        """Whether each training batch is the whole support batch, the same in every step; otherwise mini-batches."""
        return self.sampler.full_batch

    @property
    def batch_size(self) -> int | None:
        """Rows of a training step; None for the full batch. It may be changed, as `Tuner.scale_batch_size` does."""
        return self.sampler.batch_size

    @batch_size.setter
    def batch_size(self, size: int | None) -> None:
        self.sampler.batch_size = size

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch with the full batch: `shot`, as in the authors' protocol."""
        return self.shot

    @property
    def has_query(self) -> bool:
        """Whether there are images to measure an accuracy on."""
        return self.sampler.has_query

    @property
    def validates(self) -> bool:
        """Whether there are validation images: those of `validation_shots`, `all_way.validation` or a split."""
        return self.sampler.validates

    def subset_of(self, seed: int) -> Subset:
        """Return the images of a seed of the all-way protocol.

        Raises:
            DtrapError: A class has no training image, the subset file does not fit, or tasks are episodes.
        """
        return self.sampler.subset_of(seed)

    @property
    def subset(self) -> Subset:
        """All-way: the images of the current seed."""
        return self.subset_of(self.seed)

    @property
    def subsets(self) -> dict[int, Subset]:
        """Images of every seed of the all-way protocol; empty for episodes."""
        return {seed: self.subset_of(seed) for seed in self.sampler.seeds}

    @cached_property
    def fingerprint(self) -> str:
        """Digest by which a run recognizes its data files, and its subset file if there is one."""
        return self.index.fingerprint() + self.sampler.fingerprint

    # What Lightning asks for

    def train_dataloader(self) -> Iterable[Batch]:
        """Return one epoch: the full support batch, the same object at each of the `steps_per_epoch` steps.

        With `batch_size`, all support rows once in mini-batches. All-way: batches of an endless stream of the training
        images, shuffled and augmented, each drawn from (seed, step) alone.
        """
        batches = self.sampler.train_batches(self.current, self.steps_per_epoch)
        self._decode_ahead()
        return batches

    def support_batches(self) -> Iterable[Batch]:
        """Return all support rows once (all-way: plain), which a tuner may look at before its first step."""
        return self.sampler.support_batches(self.current)

    @property
    def val_dataloader(self) -> Callable[[], Iterable[Batch]]:  # type: ignore[override]
        """Method that returns every validation image once; an empty list without validation."""
        return self._validation_batches if self.validates else no_validation

    def _validation_batches(self) -> Iterable[Batch]:
        return self.sampler.validation_batches(self.current)

    def predict_dataloader(self) -> Iterable[Batch]:
        """Return the images to predict: the queries, as for a test."""
        return self.test_dataloader()

    def test_dataloader(self) -> Iterable[Batch]:
        """Return every query image once, in all its views; an empty list where there is none."""
        return self.sampler.test_batches(self.current) if self.has_query else []

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; the support batch is moved once per episode and device."""

        def move() -> Any:
            return super(FewShotDataModule, self).transfer_batch_to_device(batch, device, dataloader_idx)

        if self._current is None or not isinstance(batch, dict):
            return move()
        return self._current.moved(batch, device, move)


def _plain_ids(batch: Batch) -> list[int]:
    return batch["sample_id"][batch["view"] == 0].tolist()
