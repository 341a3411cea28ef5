"""A collection of labeled images: where they are, the class of each, and which cannot be read."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
from lightning.pytorch import LightningDataModule
from PIL import Image

from ..errors import DtrapError, check_at_least, check_lightning, check_one_of, check_template, visible
from ..keywords import KeepsArguments
from .ahead import held_back
from .groups import UnusedGroups, numbered
from .images import open_image
from .index import ImageIndex, listing
from .index_check import check_index
from .pixels import check_value_range
from .views import Preprocessing, TestPreprocessing

logger = logging.getLogger(__name__)

OnFault = Literal["error", "skip"]


class CollectionOptions(TypedDict, total=False):
    """Arguments of `ImageCollection` that its subclasses pass on."""

    template: str | None
    preprocessing: Preprocessing | None
    test_preprocessing: TestPreprocessing | None
    value_range: list[float] | None
    num_workers: int
    bad_images: OnFault
    small_classes: OnFault


class ImageCollection(KeepsArguments, LightningDataModule, ABC):
    """Images, labels and faults of a data set, without any sampling; a subclass says where the files are (`scan`).

    Args:
        root: Folder of the data set.
        template: Class prompt with `{}` for the class name; None for the data set's own.
        preprocessing: Input size and normalization where the backbone does not state its own; None for CLIP's.
        test_preprocessing: How test, validation and plain images become square: "squash" resizes straight to the
            square, bilinear, as the paper's code does; "backbone" is the backbone's own evaluation transform (CLIP's:
            shorter side, bicubic, center crop). None is what the protocol's authors do: "backbone" in the all-way
            protocol, except for the paper's four data sets, and "squash" otherwise.
        value_range: The values [black, white] of images with more than 8 bits or with floating-point pixels, such as
            [0, 4095] for 12 bits in a 16-bit file; None for the range that the file states. 8-bit images are read as
            they are.
        num_workers: Threads or processes that decode images; the result does not depend on it.
        bad_images: "error", or "skip" to leave out missing and unreadable images (see `skipped_images`). In an
            episode the next image of the class replaces each.
        small_classes: "error", or "skip" to leave out classes with too few images: fewer than shot + query, or no
            training image (all-way, one task).

    Attributes:
        preprocessing: Size, normalization and resizing of plain images. A Trainer's module sets the backbone's; where
            loaders are used without the data module, set `Preprocessing.of(backbone)` by hand.
        title: Name of the data set in results and messages.
        default_template: The data set's own class prompt.
        opens_files: Whether `load_image` opens the files with Pillow, so that these can be checked before a run. A
            subclass with another `load_image` has False unless it says True.
        unused_groups: Groups of images that are known and that no one asked to keep together, if any.
        skipped_images: (path, reason) of the images that were left out so far.

    Raises:
        DtrapError: An argument is out of range.
    """

    title = "Images"
    default_template = "a photo of a {}."
    opens_files = True
    unused_groups: UnusedGroups | None = None
    # Says of a key (see `Episode.feature_keys`) whether a module has the features of that view, so that its image need
    # not be decoded; a module that trains on frozen features sets it.
    known_features: Callable[[bytes], bool] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "load_image" in vars(cls) and "opens_files" not in vars(cls):
            cls.opens_files = False

    def __init__(
        self,
        root: str | Path,
        *,
        template: str | None = None,
        preprocessing: Preprocessing | None = None,
        test_preprocessing: TestPreprocessing | None = None,
        value_range: list[float] | None = None,
        num_workers: int = 0,
        bad_images: OnFault = "error",
        small_classes: OnFault = "error",
    ) -> None:
        super().__init__()
        check_at_least("num_workers", num_workers, 0)
        check_one_of("bad_images", bad_images, get_args(OnFault))
        check_one_of("small_classes", small_classes, get_args(OnFault))
        self.root = Path(root).expanduser()
        self.template = self.default_template if template is None else template
        check_template("template", self.template)
        if test_preprocessing is not None:
            check_one_of("test_preprocessing", test_preprocessing, get_args(TestPreprocessing))
        check_value_range(value_range)
        self.preprocessing = preprocessing or Preprocessing()
        self.test_preprocessing, self.value_range = test_preprocessing, value_range
        self.num_workers = num_workers
        self.bad_images, self.small_classes = bad_images, small_classes
        self.skipped_images: list[tuple[str, str]] = []
        self._skipped: set[str] = set()
        self._warned: set[str] = set()
        self.remarked: set[str] = set()  # files of which there was something to say

    @property
    def preprocessing(self) -> Preprocessing:
        """Size, normalization and resizing of plain images, as `test_preprocessing` says."""
        return self._preprocessing.using(self.test_preprocessing or self.default_test_preprocessing)

    @preprocessing.setter
    def preprocessing(self, preprocessing: Preprocessing) -> None:
        if not isinstance(preprocessing, Preprocessing):
            raise DtrapError(
                f"preprocessing is a {type(preprocessing).__name__}; expected a Preprocessing, such as "
                "Preprocessing.of(backbone)."
            )
        self._preprocessing = preprocessing

    @property
    def default_test_preprocessing(self) -> TestPreprocessing:
        """What `test_preprocessing` None stands for."""
        return "squash"

    @abstractmethod
    def scan(self) -> ImageIndex:
        """Read paths and labels, in an order that does not depend on the machine; nothing is decoded.

        Raises:
            DtrapError: The data are not there or not as expected.
        """

    def load_image(self, position: int) -> Image.Image:
        """Return the RGB picture at a position of the index; called from several threads at a time.

        Raises:
            ImageError: It cannot be read.
        """
        return open_image(self.index.paths[position], self.value_range, self.warn_once)

    @cached_property
    def index(self) -> ImageIndex:
        """Paths and labels, read and checked once; missing files are reported here."""
        index = self.scan()
        check_index(index, f"{type(self).__name__}.scan")
        for note in index.notes:
            logger.warning("%s: %s", self.title, visible(note))
        if index.faults:
            self._leave_out(index.faults)
        if index.missing and self.bad_images == "error":
            raise DtrapError(
                f"{self.title}: {len(index.missing)} image(s) do not exist: {listing(index.missing, 3)}. "
                "Complete the download, or leave them out: --data.bad_images skip."
            )
        if index.missing:
            self._skipped.update(index.missing)
            self.skipped_images += [(path, f"Image {path} does not exist.") for path in index.missing]
            names = listing(index.missing, 3)
            logger.warning("%s: left out %d images that do not exist: %s", self.title, len(index.missing), names)
        return index

    def _leave_out(self, faults: Sequence[tuple[str, str]]) -> None:
        """Record files and folders that cannot be used; raise a DtrapError where `bad_images` is "error"."""
        names = listing([f"{visible(path)} ({reason})" for path, reason in faults], 3)
        if self.bad_images == "error":
            raise DtrapError(
                f"{self.title}: {len(faults)} file(s) or folder(s) cannot be used: {names}. Correct or remove them, or "
                "leave them out: --data.bad_images skip."
            )
        self._skipped.update(path for path, _ in faults)
        self.skipped_images += [(path, f"{path}: {reason}.") for path, reason in faults]
        logger.warning("%s: left out %d files or folders that cannot be used: %s", self.title, len(faults), names)

    @cached_property
    def positions(self) -> list[np.ndarray]:
        """Positions in the index of the images of each class."""
        labels = np.asarray(self.index.labels, dtype=np.int64)
        order = np.argsort(labels, kind="stable")
        borders = np.searchsorted(labels[order], np.arange(1, len(self.index.class_names)))
        return np.split(order, borders)

    @cached_property
    def group_of(self) -> np.ndarray | None:
        """Number of the group of each image of the index; None where draws know no groups."""
        return None if self.index.groups is None else numbered(self.index.groups)

    def positions_in(self, split: str) -> list[np.ndarray]:
        """Return the positions in the index of the images of each class in a published split."""
        chosen = self._splits == split
        return [found[chosen[found]] for found in self.positions]

    @cached_property
    def _splits(self) -> np.ndarray:
        return np.asarray(self.index.splits)

    def large_classes(self, counts: list[int], needed: int, reason: str, what: str = "images") -> list[int]:
        """Return the labels of the classes with at least the needed number of images.

        Args:
            counts: Number of images of each class.
            needed: Least number.
            reason: What they are needed for, such as "shot 5 + query 15".
            what: What is counted, such as "training images" of a published split.

        Raises:
            DtrapError: A class has too few, unless `small_classes` is "skip".
        """
        names = self.index.class_names
        small = [f"'{name}' has {n}" for name, n in zip(names, counts, strict=True) if n < needed]
        if small and self.small_classes == "error":
            raise DtrapError(
                f"{self.title}: too few {what} under {self.root}: {listing(small)}; needed: {needed} "
                f"({reason}). Add images, lower the numbers, or leave these classes out: --data.small_classes skip."
            )
        if small:
            self.warn_once(f"left out {len(small)} small class(es): {listing(small, len(small))} {what} of {needed}")
        return [label for label, count in enumerate(counts) if count >= needed]

    def warn_once(self, text: str, such_as: str = "") -> None:
        """Log a warning once, even if it applies to many images, episodes or seeds; `such_as` is the first case."""
        if held_back(text, such_as):
            return
        if such_as:
            self.remarked.add(such_as)
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("%s: %s%s", self.title, text, f" (found in {such_as})" if such_as else "")

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse the Trainer of another package, which would fail without saying why."""
        if name == "trainer":
            check_lightning(value)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle everything except the Trainer, which spawned workers cannot receive."""
        return self.__dict__ | {"trainer": None, "known_features": None}

    def __str__(self) -> str:
        return f"{type(self).__name__}: {self.title} under {self.root}"

    def path_of(self, sample_id: int) -> Path:
        """Return the file of a `sample_id`."""
        return Path(self.index.paths[sample_id])

    def unreadable(self, position: int, reason: str, part_of: str = "") -> None:
        """Record an image that could not be read.

        Args:
            position: Position of the image in the index.
            reason: Sentence that names the file and the fault.
            part_of: What needs the image, such as "episode 3 of ISIC".

        Raises:
            DtrapError: `bad_images` is "error".
        """
        if self.bad_images == "error":
            raise unreadable_error([reason], part_of)
        path = self.index.paths[position]
        if path not in self._skipped:
            self._skipped.add(path)
            self.skipped_images.append((path, reason))
            logger.warning("%s: left out: %s", self.title, reason)


def unreadable_error(reasons: Sequence[str], part_of: str = "") -> DtrapError:
    """Return the error for images that cannot be read.

    Args:
        reasons: A sentence on each, which names the file and the fault.
        part_of: What needs them, such as "episode 3 of ISIC".
    """
    several = len(reasons) > 1
    place = f" {'They belong' if several else 'It belongs'} to {part_of}." if part_of else ""
    more = f" And {len(reasons) - 3} more." if len(reasons) > 3 else ""
    return DtrapError(
        f"{' '.join(map(visible, reasons[:3]))}{more}{place} Replace the file{'s' * several}, or leave out "
        "unreadable images: --data.bad_images skip."
    )
