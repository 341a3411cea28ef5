"""A user's own images: one folder per class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DtrapError, nearest
from ..keywords import Unpack
from .episode import Task
from .few_shot import AnyShotOptions, FewShotDataModule
from .index import ImageIndex, class_folders, index_class_folders, join, listing, names_of_folders, no_folder
from .sampler import CLASSES, EpisodeSampler

# Arguments that have no effect on one task, and their defaults.
_OF_EPISODES = {"way": 5, "query": 15, "episode": 0, "all_way": None, "subset": None}


class FolderOptions(AnyShotOptions, total=False):
    """All arguments of `FolderDataModule` except `root` and `shot`."""

    query_root: str | Path | None
    held_out: float | None
    class_names: dict[str, str] | None


class FolderDataModule(FewShotDataModule):
    """A user's own images: one task over all of them, or episodes if `shot` is given.

    Format: one folder per class directly under the root, with its images directly in it. Subfolders of a class folder,
    files next to the class folders and hidden folders are ignored. Classes may have different numbers of images.

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
        self.title = self.root.resolve().name
        self.names_of_folders = dict(class_names or {})
        self.query_root = None if query_root is None else Path(query_root).expanduser()
        self.held_out = held_out
        self._check_protocol(shot, options)
        self._support_size = 0
        if shot is None:
            self.shot = 0  # all images
            self.sampler = OneTaskSampler(self, self.seed, self.batch_size)

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
        if self.query_root is not None and self.query_root.resolve() == self.root.resolve():
            raise DtrapError(f"query_root is root itself ({self.root}); use held_out to keep a share for testing.")

    def scan(self) -> ImageIndex:
        """List the class folders; the images of `query_root` come after those of the root."""
        folders = _folders_of(self.root, "root")
        names = names_of_folders(self.root, folders, self.names_of_folders)
        index = index_class_folders(self.root, folders, names)
        self._support_size = len(index.paths)
        if not index.paths:
            raise _no_images(self.root, folders)
        if self.query_root is None:
            return index
        for folder in _folders_of(self.query_root, "query_root"):
            if folder not in folders:
                raise DtrapError(
                    f"{self.query_root / folder}: {self.root} has no class folder '{folder}'."
                    f"{nearest(folder, folders)} Rename or remove it."
                )
        queries = index_class_folders(self.query_root, folders, names)
        if not queries.paths:
            raise DtrapError(f"No images in the class folders of query_root {self.query_root}. Add some.")
        return join(index, queries, roots=index.roots + queries.roots)

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
    """

    tasks = 1
    data: FolderDataModule

    def __init__(self, data: FolderDataModule, seed: int, batch_size: int | None) -> None:
        super().__init__(data, way=2, shot=1, query=0, seed=seed, batch_size=batch_size)
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
        if self.has_query and not any(task.query):
            raise DtrapError(
                f"held_out {data.held_out} leaves no query image: the classes under {data.root} have "
                f"{min(map(len, own))} to {max(map(len, own))} images. Raise it, or give a query_root."
            )
        return task


def _no_images(root: Path, folders: list[str]) -> DtrapError:
    """Return the error for class folders without an image; the root may be one folder too high."""
    for folder in folders:
        within = class_folders(root / folder)
        if within:
            return DtrapError(
                f"The class folders of {root} have no images in them; {root / folder} has folders: {listing(within)}. "
                f"Set data.root to {root / folder} if these are the classes, or move the images up."
            )
    return DtrapError(f"The class folders of {root} ({listing(folders)}) have no images in them. Add some.")


def _folders_of(root: Path, argument: str) -> list[str]:
    if not root.is_dir():
        raise DtrapError(f"{root} {no_folder(root)}. Set data.{argument} to the folder of the class folders.")
    folders = class_folders(root)
    if not folders:
        raise DtrapError(f"{root} has no folders. Expected one folder per class, with its images in it.")
    return folders
