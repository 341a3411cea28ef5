"""A user's own images: one folder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any, cast

import numpy as np

from ..errors import DtrapError, check_at_least, nearest
from ..files import printable
from ..keywords import Unpack
from .copied_images import without_copies
from .few_shot import AnyShotOptions, FewShotDataModule
from .held_out import HELD_OUT
from .index import (
    ImageIndex,
    class_folders,
    index_class_folders,
    join,
    listing,
    names_of_folders,
    no_folder,
    normal,
    spelled_as,
)
from .one_task import OneTaskSampler
from .places import FolderTree, check_no_splits, unread
from .split_folders import AS_CLASSES, SplitFolders, find_splits, index_splits
from .walk import walk

MOST_COMPARED = 20_000  # images that are compared with each other where the task has no queries of its own

# Arguments that have no effect on one task, and their defaults.
_OF_EPISODES = {"way": 5, "query": 15, "episode": 0, "all_way": None, "subset": None}


class FolderOptions(AnyShotOptions, total=False):
    """All arguments of `FolderDataModule` except `root` and `shot`."""

    query_root: str | Path | None
    held_out: float | None
    repeats: int | None
    split_folders: bool
    balanced_batches: bool
    class_names: dict[str, str] | None


class FolderDataModule(FewShotDataModule):
    """A user's own images: one task over all of them, or episodes if `shot` is given.

    Format: one folder per class directly under the root, with its images in it or its sub-folders. Files next to the
    class folders and hidden folders are ignored. Classes may have different numbers of images.

    One task makes a classifier: every image is a support image, except those held out. It has an accuracy only with
    `query_root`, `held_out` or a test folder. Episodes and the all-way protocol measure a method on the images: N-way
    K-shot episodes, or K images of every class with all others as the test set.

    The root may have folders called train, val and test instead (also training, valid, validation, dev, testing, in any
    case) with the class folders in each. Then the images of train are support images, those of test queries, and those
    of val are for validation; see `split_folders`.

    Args:
        root: Folder of the class folders.
        shot: Support images per class K of episodes or of the all-way protocol; None for one task over all images.
        query_root: One task: folder with query images in class folders of the same names; some may be absent.
        held_out: One task: share in (0, 1) of each class, rounded, that is kept as queries; at least one image of each
            class remains support. No group of images is on both sides, where groups are known.
        repeats: One task: number of times that images are held out, each drawn anew and a task of its own; the mean of
            their accuracies has the corrected resampled interval of Nadeau and Bengio (2003). None for once. Without
            `held_out` the share is 0.2.
        split_folders: Whether folders called train, val and test that have class folders are splits; False takes all
            folders under the root as classes.
        balanced_batches: One task with a `batch_size`: rows of mini-batches are drawn with replacement such that all
            classes come equally often, instead of each row once in an epoch.
        class_names: Class names of folders whose name is not the class name, such as `cls_03`.
        **options: Further arguments of `FewShotDataModule`; `way`, `query`, `episode`, `all_way` and `subset` need a
            `shot`.

    Raises:
        DtrapError: An argument is out of range, or two arguments exclude each other.
    """

    own_images = True
    compares_files = True  # whether a scan looks for files with the same content

    _copies: frozenset[int] = frozenset()  # positions of query images that are also support images
    _support_size: int | None = None  # number of images before those of query_root; None for all

    def __init__(
        self,
        root: str | Path,
        *,
        shot: int | None = None,
        query_root: str | Path | None = None,
        held_out: float | None = None,
        repeats: int | None = None,
        split_folders: bool = True,
        balanced_batches: bool = False,
        class_names: dict[str, str] | None = None,
        **options: Unpack[AnyShotOptions],
    ) -> None:
        super().__init__(root, shot=1 if shot is None else shot, **options)
        self.fixed_numbers = shot is not None
        self.title = printable(os.path.basename(os.path.realpath(self.root)))
        self.names_of_folders = {str(key): name for key, name in (class_names or {}).items()}
        self.query_root = None if query_root is None else Path(query_root).expanduser()
        self.held_out = HELD_OUT if repeats is not None and held_out is None else held_out
        self.balanced_batches = balanced_batches
        self.repeats, self.split_folders, self.resampled = repeats, split_folders, repeats is not None
        self._check_protocol(shot, options)
        if shot is None:
            self.shot = 0  # all images
            shots = options.get("validation_shots", 0)
            self.sampler = OneTaskSampler(self, self.seed, self.batch_size, self.drop_last, shots)
            self.unit = self.sampler.unit

    def _check_protocol(self, shot: int | None, options: Mapping[str, Any]) -> None:
        """Raise a DtrapError for arguments that exclude each other."""
        given = [name for name, value in _OF_EPISODES.items() if options.get(name, value) != value]
        if shot is None and given:
            raise DtrapError(f"{given[0]} has no effect on one task over all images. Give --data.shot as well.")
        if self.repeats is not None:
            check_at_least("repeats", self.repeats, 1)
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise DtrapError(f"held_out is {self.held_out}; expected a share between 0 and 1, such as 0.2.")
        if self.balanced_batches and (shot is not None or self.batch_size is None):
            raise DtrapError(
                "balanced_batches is for mini-batches of one task over all images: without a batch size every step has "
                "all images. Give --data.batch_size 32 --model.objective.relation_source current, without shot."
            )
        what = "repeats" if self.repeats is not None else "held_out"
        if self.held_out is not None and self.query_root is not None:
            raise DtrapError(f"query_root and {what} are both given; remove one of them.")
        if shot is not None and (self.held_out is not None or self.query_root is not None):
            raise DtrapError(f"query_root and {what} are for one task over all images. Remove them, or remove shot.")
        if self.query_root is not None:
            self._check_query_root(self.query_root)

    def scan(self) -> ImageIndex:
        """List the class folders; the images of `query_root` come after those of the root."""
        _folders_of(self.root, "root")
        splits = find_splits(self.root) if self.split_folders else None
        index = self._scan_root() if splits is None else self._scan_splits(splits)
        tested = self.query_root is not None or self.held_out is not None or "test" in (index.splits or ())
        if not self.compares_files or (not tested and len(index.paths) > MOST_COMPARED):
            return index
        others = "query_root" if splits is None else "the val and test folders"
        size, skips = self._support_size or len(index.paths), self.bad_images == "skip"
        index, self._copies = without_copies(index, size, self.root, others, leave_out=skips)
        return index

    def _check_query_root(self, query_root: Path) -> None:
        """Raise a DtrapError if `query_root` is the root, or inside it and no split of it."""
        root, inner = os.path.realpath(self.root), os.path.realpath(query_root)
        if inner == root:
            raise DtrapError(f"query_root is root itself ({self.root}); use held_out to keep a share for testing.")
        if not Path(inner).is_relative_to(root):
            return
        splits = None
        with suppress(DtrapError):
            splits = find_splits(self.root) if self.split_folders else None
        held_back = [] if splits is None else [folder for folder in (splits.val, splits.test) if folder is not None]
        if inner not in {os.path.realpath(folder) for folder in held_back}:
            raise DtrapError(
                f"query_root {query_root} is inside root {self.root}, where it counts as a class. Move it."
            )

    def _scan_root(self) -> ImageIndex:
        """List the class folders under the root, then those of `query_root`."""
        folders = class_folders(self.root)
        names = names_of_folders(self.root, folders, self.names_of_folders)
        beside = walk(self.root, recursive=False)
        unused, beside.images = beside.images, []
        index = index_class_folders(self.root, folders, names, beside)
        self._support_size = len(index.paths)
        if not index.paths:
            raise _no_images(self.root, folders, index.notes)
        _check_level(index, self.root, folders)
        if unused:
            text = f"{len(unused):,} image{'s' * (len(unused) > 1)} next to the class folders not used: {unused[0]}"
            index = replace(index, notes=(*index.notes, text))
        if self.query_root is not None:
            queries = self._scan_queries(folders, names)
            index = join(index, queries, roots=index.roots + queries.roots)
        return index

    def _scan_splits(self, found: SplitFolders) -> ImageIndex:
        """List the class folders of the splits, or of `query_root` instead of the test split."""
        if self.held_out is not None and found.test is not None:
            raise DtrapError(
                f"{self.root} has test images in {found.test}, and a share of the training images is to be held out as "
                f"well. Remove held_out and repeats, or give the training folder: --data.root {quote(str(found.train))}"
            )
        if self.fixed_numbers and found.test is None and self.sampler.has_query:
            raise DtrapError(
                f"{self.root} has split folders, but none with test images to draw queries from. Give --data.root "
                f"{quote(str(found.train))}; if the folders are classes, give {AS_CLASSES}."
            )
        query_root = None if self.query_root is None else Path(os.path.realpath(self.query_root))
        if query_root is not None:
            val = None if found.val is None or Path(os.path.realpath(found.val)) == query_root else found.val
            found = replace(found, val=val, test=self.query_root)
        index = index_splits(self.root, found, self.names_of_folders, skip_unknown=self.small_classes == "skip")
        numbers = Counter(index.splits)
        if not numbers["train"]:
            raise _no_images(found.train, class_folders(found.train), index.notes)
        for split in ("val", "test"):
            folder = found.folders.get(split)
            if folder is not None and not numbers[split]:
                raise DtrapError(
                    f"No images in the class folders of {folder}{_because(index.notes)}. Add some, or move it."
                )
        self._support_size = numbers["train"]
        return index

    def _scan_queries(self, folders: Sequence[str], names: Sequence[str]) -> ImageIndex:
        """List the class folders of `query_root`."""
        root = cast(Path, self.query_root)
        found = _folders_of(root, "query_root")
        check_no_splits(root, "query_root", one_task=True)
        expected = {*map(normal, folders)}
        for folder in found:
            if normal(folder) not in expected:
                raise DtrapError(
                    f"{root / folder}: {self.root} has no class folder '{folder}'."
                    f"{nearest(folder, folders)} Rename or remove it."
                )
        queries = index_class_folders(root, [spelled_as(found, folder) for folder in folders], names)
        if not queries.paths:
            raise DtrapError(f"No images in the class folders of query_root {root}{_because(queries.notes)}. Add some.")
        return replace(queries, notes=tuple(f"query_root: {note}" for note in queries.notes))

    @property
    def copied_queries(self) -> int:
        """Number of query images that are also support images, under whatever name."""
        return len(self._copies.intersection(position for positions in self.task.query for position in positions))

    @cached_property
    def _is_tested(self) -> bool:
        return "test" in (self.index.splits or ())

    @property
    def has_query(self) -> bool:
        """Whether there are images to measure an accuracy on."""
        return super().has_query or (not self.fixed_numbers and self._is_tested)

    @property
    def own_positions(self) -> list[np.ndarray]:
        """Positions in the index of the images of each class to train on, or to hold out a share of."""
        if self.index.splits is not None:
            return self.positions_in("train")
        size = len(self.index.paths) if self._support_size is None else self._support_size
        return [found[found < size] for found in self.positions]

    @property
    def query_positions(self) -> list[np.ndarray]:
        """Positions in the index of the images of each class to test on, except those that are held out."""
        if self.index.splits is not None:
            return self.positions_in("test")
        return [found[len(own) :] for found, own in zip(self.positions, self.own_positions, strict=True)]

    @property
    def validation_positions(self) -> list[np.ndarray] | None:
        """Positions in the index of the images of each class to validate on; None without a validation split."""
        return self.positions_in("val") if "val" in (self.index.splits or ()) else None

    @property
    def description(self) -> str:
        """Name of the folder with way and shot, or of one task as in "my_photos 4 classes · 23 images".

        With images to test on there are two numbers, which belong to the result.
        """
        if self.fixed_numbers:
            return super().description
        images = "" if self.has_query else f" · {sum(map(len, self.task.support))} images"
        return f"{self.title} {len(self.task.classes)} classes{images}"

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch: `shot`, or of one task the images per class M/W, rounded, at least 1."""
        if self.fixed_numbers:
            return super().steps_per_epoch
        return max(1, round(sum(map(len, self.task.support)) / len(self.task.classes)))


class WrongLevel(DtrapError):
    """The class folders are not directly under the root; the message names the folder that they are in."""


def _because(notes: Sequence[str]) -> str:
    """Return the line about the files that were left out, in brackets; an empty string if there is none."""
    return next((f" ({note})" for note in notes if " left out: " in note), "")


def _check_level(index: ImageIndex, root: Path, folders: Sequence[str]) -> None:
    """Raise a DtrapError where the only class holds the class folders."""
    if len({*index.labels}) > 1:
        return
    folder = root / folders[index.labels[0]]
    for _ in range(3):  # folders around the class folders
        within = class_folders(folder)
        if not within or any(os.path.dirname(path) == str(folder) for path in index.paths):
            return
        if len(within) > 1:
            raise WrongLevel(
                f"{root} has images of one class only, in sub-folders: {folder} has folders: {listing(within)}. "
                f"Give it if these are the classes: --data.root {quote(str(folder))}; or move the images up."
            )
        folder /= within[0]


def _no_images(root: Path, folders: list[str], notes: Sequence[str]) -> DtrapError:
    """Return the error for class folders without an image."""
    return DtrapError(
        f"The class folders of {root} ({listing(folders)}) have no images in them{_because(notes)}."
        f"{unread(FolderTree(root)) or ' Add some.'}"
    )


def _folders_of(root: Path, argument: str) -> list[str]:
    if not root.is_dir():
        raise DtrapError(f"{root} {no_folder(root)}. Set data.{argument} to the folder of the class folders.")
    folders = class_folders(root)
    if not folders:
        raise DtrapError(f"{root} has no folders. Expected one folder per class, with its images in it.")
    return folders
