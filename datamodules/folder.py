"""A user's own images: one folder per class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any, cast

import numpy as np

from ..errors import DtrapError, nearest
from ..files import printable
from ..keywords import Unpack
from .copies import find_copies
from .episode import Task
from .few_shot import AnyShotOptions, FewShotDataModule
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
from .places import FolderTree, check_no_splits, unread
from .sampler import CLASSES, EpisodeSampler
from .walk import walk

MOST_COMPARED = 20_000  # images that are compared with each other where the task has no queries of its own

# Arguments that have no effect on one task, and their defaults.
_OF_EPISODES = {"way": 5, "query": 15, "episode": 0, "all_way": None, "subset": None}


class FolderOptions(AnyShotOptions, total=False):
    """All arguments of `FolderDataModule` except `root` and `shot`."""

    query_root: str | Path | None
    held_out: float | None
    class_names: dict[str, str] | None


class FolderDataModule(FewShotDataModule):
    """A user's own images: one task over all of them, or episodes if `shot` is given.

    Format: one folder per class directly under the root, with its images in it or its sub-folders. Files next to the
    class folders and hidden folders are ignored. Classes may have different numbers of images.

    One task makes a classifier: every image is a support image, except those held out. It has an accuracy only with
    `query_root` or `held_out`. Episodes and the all-way protocol measure a method on the images: N-way K-shot episodes,
    or K images of every class with all others as the test set.

    Args:
        root: Folder of the class folders.
        shot: Support images per class K of episodes or of the all-way protocol; None for one task over all images.
        query_root: One task: folder with query images in class folders of the same names; some may be absent.
        held_out: One task: share in (0, 1) of each class, rounded, that is kept as queries; at least one image of each
            class remains support.
        class_names: Class names of folders whose name is not the class name, such as `cls_03`.
        **options: Further arguments of `FewShotDataModule`; `way`, `query`, `episode`, `all_way` and `subset` need a
            `shot`.

    Raises:
        DtrapError: An argument is out of range, or two arguments exclude each other.
    """

    own_images = True

    _copies: frozenset[int] = frozenset()  # positions of query images that are also under the root

    def __init__(
        self,
        root: str | Path,
        *,
        shot: int | None = None,
        query_root: str | Path | None = None,
        held_out: float | None = None,
        class_names: dict[str, str] | None = None,
        **options: Unpack[AnyShotOptions],
    ) -> None:
        super().__init__(root, shot=1 if shot is None else shot, **options)
        self.fixed_numbers = shot is not None
        self.title = printable(os.path.basename(os.path.realpath(self.root)))
        self.names_of_folders = dict(class_names or {})
        self.query_root = None if query_root is None else Path(query_root).expanduser()
        self.held_out = held_out
        self._check_protocol(shot, options)
        self._support_size = 0
        if shot is None:
            self.shot = 0  # all images
            self.sampler = OneTaskSampler(self, self.seed, self.batch_size, self.drop_last)
            self.unit = self.sampler.unit

    def _check_protocol(self, shot: int | None, options: Mapping[str, Any]) -> None:
        """Raise a DtrapError for arguments that exclude each other."""
        given = [name for name, value in _OF_EPISODES.items() if options.get(name, value) != value]
        if shot is None and given:
            raise DtrapError(f"{given[0]} has no effect on one task over all images. Give --data.shot as well.")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise DtrapError(f"held_out is {self.held_out}; expected a share between 0 and 1, such as 0.2.")
        if self.held_out is not None and self.query_root is not None:
            raise DtrapError("query_root and held_out are both given; remove one of them.")
        if shot is not None and (self.held_out is not None or self.query_root is not None):
            raise DtrapError("query_root and held_out are for one task over all images. Remove them, or remove shot.")
        if self.query_root is not None:
            root, query_root = Path(os.path.realpath(self.root)), Path(os.path.realpath(self.query_root))
            if query_root == root:
                raise DtrapError(f"query_root is root itself ({self.root}); use held_out to keep a share for testing.")
            if query_root.is_relative_to(root):
                raise DtrapError(
                    f"query_root {self.query_root} is inside root {self.root}, where it counts as a class. Move it."
                )

    def scan(self) -> ImageIndex:
        """List the class folders; the images of `query_root` come after those of the root."""
        folders = _folders_of(self.root, "root")
        check_no_splits(self.root, "root", one_task=not self.fixed_numbers)
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
        return self._without_copies(index) if self.has_query or len(index.paths) <= MOST_COMPARED else index

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

    def _without_copies(self, index: ImageIndex) -> ImageIndex:
        """Note images that are there twice; leave out queries that are support images where `bad_images` says so."""
        positions = {path: position for position, path in enumerate(index.paths)}
        leaked: dict[str, str] = {}
        twice: list[str] = []
        classes: list[str] = []
        for group in find_copies(index.paths):
            own = [path for path in group if positions[path] < self._support_size]
            leaked |= {path: own[0] for path in group[len(own) :] if own}
            pair = " and ".join(os.path.relpath(path, self.root) for path in group[:2])
            several = len({index.labels[positions[path]] for path in group}) > 1
            (classes if several else twice).append(pair)
        notes = [
            *([f"the same image is in several classes: {listing(classes, 3)}"] if classes else []),
            *([f"the same image is there twice: {listing(twice, 3)}"] if twice and not self.query_root else []),
        ]
        if leaked and self.bad_images == "error":
            count, all_ = len(leaked), len(index.paths) - self._support_size
            pairs = listing([f"{path} is {other}" for path, other in leaked.items()], 3)
            text = (
                f"{count:,} of the {all_:,} images of query_root are also under root, so an accuracy on them is too "
                f"high: {pairs}. --data.bad_images skip leaves them out"
            )
            self._copies = frozenset(positions[path] for path in leaked)
            return replace(index, notes=(*index.notes, *notes, text))
        if leaked and len(leaked) == len(index.paths) - self._support_size:
            raise DtrapError(
                f"All {len(leaked)} images of query_root {self.query_root} are images of root {self.root} (the same "
                "content). Give other images, or keep a share for testing: --data.held_out 0.2 without query_root."
            )
        kept = [position for position, path in enumerate(index.paths) if path not in leaked]
        return replace(
            index,
            paths=[index.paths[position] for position in kept],
            labels=[index.labels[position] for position in kept],
            notes=(*index.notes, *notes),
            faults=(*index.faults, *((path, f"the same image as {other}") for path, other in leaked.items())),
        )

    @property
    def copied_queries(self) -> int:
        """Number of query images that are also under the root, under whatever name."""
        return len(self._copies.intersection(position for positions in self.task.query for position in positions))

    @property
    def own_positions(self) -> list[np.ndarray]:
        """Positions in the index of the images of each class under the root."""
        return [found[found < self._support_size] for found in self.positions]

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


class OneTaskSampler(EpisodeSampler):
    """One task over all classes and images of a folder.

    Args:
        data: The images.
        seed: Seed of the views and of what is held out.
        batch_size: Support rows of a training step; None for all of them.
        drop_last: Whether an incomplete last mini-batch of an epoch is dropped.
    """

    tasks = 1
    unit = "task"
    data: FolderDataModule

    def __init__(self, data: FolderDataModule, seed: int, batch_size: int | None, drop_last: bool) -> None:
        super().__init__(data, way=2, shot=1, query=0, seed=seed, batch_size=batch_size, drop_last=drop_last)
        self.description = "one task"
        self.has_query = data.query_root is not None or data.held_out is not None

    def draw(self, number: int) -> Task:
        """Return all classes; support and query images as the folders or the held-out share say."""
        data, own = self.data, self.data.own_positions
        usable = data.large_classes([len(found) for found in own], 1, "for the support")
        task = Task(usable, support=[], query=[], spare=[[] for _ in usable])
        rng = self.generator(number, CLASSES)
        for label in usable:
            support, query = own[label], data.positions[label][len(own[label]) :]
            if data.held_out is not None:
                order = rng.permutation(support)
                count = min(round(data.held_out * len(order)), len(order) - 1)
                support, query = np.sort(order[count:]), np.sort(order[:count])
            task.support.append(support.tolist())
            task.query.append(query.tolist())
        if len(usable) < 2:
            raise DtrapError(
                f"{data.root} has images of {len(usable)} class(es); expected 2 or more folders of images."
            )
        names = data.index.class_names
        untested = [names[label] for label, query in zip(usable, task.query, strict=True) if not query]
        if self.has_query and untested and any(task.query):
            data.warn_once(f"no test image, so the accuracy does not cover them: {listing(untested)}")
        if self.has_query and not any(task.query):
            raise DtrapError(
                f"held_out {data.held_out} leaves no query image: the classes under {data.root} have "
                f"{min(map(len, own))} to {max(map(len, own))} images. Raise it, or give a query_root."
            )
        return task


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
