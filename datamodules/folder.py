"""A user's own images: one folder per class."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import DtrapError, nearest
from ..keywords import Unpack, check_keywords
from .collection import CollectionOptions
from .few_shot import FewShotDataModule, Task
from .index import ImageIndex, class_folders, index_class_folders, listing, names_of_folders, no_folder


class OneTaskOptions(CollectionOptions, total=False):
    """Arguments of `FewShotDataModule` that make sense for one task."""

    views: int
    seed: int
    batch_size: int | None


class FolderDataModule(FewShotDataModule):
    """One task over all classes of a folder; every image is support unless some are held out.

    Format: one folder per class directly under the root, its images directly in it (folders within are not
        looked
    into). Files beside the class folders and hidden folders are ignored. Classes may have unequal numbers of
    images. There are queries, and hence an accuracy, only with `query_root` or `held_out`.

    Args:
        root: Folder of the class folders.
        query_root: Folder with query images in class folders of the same names, some of which may be absent.
        held_out: Share in (0, 1) of each class, rounded, that is kept as queries; at least one image of each
            class remains support.
        class_names: Class name of a folder, for folders called `cls_03`; others keep the folder's name.
        **options: Arguments of `FewShotDataModule` that make sense for one task.

    Raises:
        DtrapError: An argument is out of range, or `query_root` and `held_out` are both given.
    """

    tasks = 1
    own_images = True
    fixed_numbers = False

    def __init__(
        self,
        root: str | Path,
        *,
        query_root: str | Path | None = None,
        held_out: float | None = None,
        class_names: dict[str, str] | None = None,
        **options: Unpack[OneTaskOptions],
    ) -> None:
        check_keywords(self, options, OneTaskOptions)
        # jsonargparse offers every argument of the parent that is not given here; these have no meaning for one task.
        super().__init__(root, way=5, shot=5, query=15, episode=0, all_way=None, subset=None, **options)
        if held_out is not None and not 0 < held_out < 1:
            raise DtrapError(f"held_out is {held_out}; expected a share between 0 and 1, such as 0.2.")
        if held_out is not None and query_root is not None:
            raise DtrapError("query_root and held_out are both given; remove one of them.")
        self.query_root = None if query_root is None else Path(query_root).expanduser()
        if self.query_root is not None and self.query_root.resolve() == self.root.resolve():
            raise DtrapError(f"query_root is root itself ({self.root}); use held_out to keep a share for testing.")
        self.held_out = held_out
        self._support_size = 0
        self.names_of_folders = dict(class_names or {})

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
                    f"{self.query_root / folder}: there is no such class folder in {self.root}."
                    f"{nearest(folder, folders)} Rename or remove it."
                )
        queries = index_class_folders(self.query_root, folders, names)
        if not queries.paths:
            raise DtrapError(f"No images in the class folders of query_root {self.query_root}.")
        return replace(
            index,
            paths=index.paths + queries.paths,
            labels=index.labels + queries.labels,
            roots=index.roots + queries.roots,
        )

    @cached_property
    def usable_classes(self) -> list[int]:
        """Classes with an image of their own."""
        return self.large_classes([len(found) for found in self._own_positions], 1, "for the support")

    @property
    def _own_positions(self) -> list[np.ndarray]:
        """Positions in the index of the images of each class under the root."""
        return [found[found < self._support_size] for found in self.positions]

    def draw_task(self) -> Task:
        """All classes; support and query images as the folders or the held-out share say."""
        own, usable = self._own_positions, self.usable_classes
        support = {label: own[label] for label in usable}
        query = {label: self.positions[label][len(own[label]) :] for label in usable}
        if self.held_out is not None:
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.episode, 0)))
            for label in usable:
                order = rng.permutation(own[label])
                count = min(round(self.held_out * len(order)), len(order) - 1)
                support[label], query[label] = np.sort(order[count:]), np.sort(order[:count])
        if len(usable) < 2:
            raise DtrapError(
                f"{self.root} has images of {len(usable)} class(es); expected 2 or more folders of images."
            )
        if self.has_query and not sum(map(len, query.values())):
            raise DtrapError(
                f"held_out {self.held_out} leaves no query image: the classes under {self.root} have "
                f"{min(map(len, own))} to {max(map(len, own))} images. Raise it, or give a query_root."
            )
        return Task(
            classes=usable,
            support=[support[label].tolist() for label in usable],
            query=[query[label].tolist() for label in usable],
            spare=[[] for _ in usable],
        )

    @property
    def has_query(self) -> bool:
        """Whether there are images to measure an accuracy on."""
        return self.query_root is not None or self.held_out is not None

    @property
    def description(self) -> str:
        """Name of the folder, classes and support images, as in "my_photos 4 classes · 23 images"."""
        images = sum(map(len, self.task.support))
        return f"{self.root.resolve().name} {len(self.task.classes)} classes · {images} images"

    @property
    def protocol(self) -> str:
        """One task of all classes and images."""
        return "one task"

    @property
    def steps_per_epoch(self) -> int:
        """Images per class M/W, rounded, at least 1: the steps that an episode of that shot has."""
        return max(1, round(sum(map(len, self.task.support)) / len(self.task.classes)))


def _no_images(root: Path, folders: list[str]) -> DtrapError:
    """The error for class folders without a single image; those of a root one too high hold the class folders."""
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
