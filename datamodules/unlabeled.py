"""Unlabeled images for `dtrap predict` and `dtrap.Classifier`."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..errors import DtrapError
from .batches import Batch, collate, read_item
from .given_images import GivenImages, find_images
from .images import convert_image, open_image
from .index import no_folder
from .pixels import check_value_range
from .views import Preprocessing

logger = logging.getLogger(__name__)


class UnlabeledImages(Dataset[dict[str, Any]]):
    """All images in a folder and its sub-folders, sorted by path, or images that were given in another way.

    An item is a dictionary of `images` [3, S, S] (normalized) and `index` (position in `paths`), or of
    `index` and `fault` (the reason) where the file cannot be read.

    Args:
        folder: Where the images are, or what `find_images` has found.
        preprocessing: Input size, normalization and resizing, as in the training.
        value_range: The values [black, white] of images with more than 8 bits, as in the training.

    Attributes:
        given: The images, and where they come from.
        paths: Path of each image; a name such as "image 1" of one that is no file.
        unreadable: (path, reason) of the files that `batches` left out so far.
        faults: (path, reason) of folders that cannot be read, broken links and the like.
        left_out: Line on the files that are not images, such as "20 files left out: 12 .dcm, 8 .svg"; may be empty.

    Raises:
        DtrapError: The folder does not exist or has no image.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | GivenImages,
        preprocessing: Preprocessing,
        value_range: list[float] | None = None,
    ) -> None:
        check_value_range(value_range)
        if not isinstance(folder, GivenImages):
            folder = Path(folder).expanduser()
            if not folder.is_dir():
                raise DtrapError(f"{folder} {no_folder(folder)}. Give the folder of the new images, --images FOLDER.")
            folder = find_images(folder)
        self.given = folder
        self.paths = [image.name for image in folder.images]
        self._sources = [image.source for image in folder.images]
        self.left_out, self.faults = folder.left_out_line, folder.faults
        self.preprocessing, self.value_range = preprocessing, value_range
        self.unreadable: list[tuple[str, str]] = []
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return read_item({"index": index}, lambda: self.preprocessing.to_tensor(self._open(index)))

    def part(self, start: int, end: int) -> UnlabeledImages:
        """Return a data set of the images from `start` up to `end`."""
        part = copy.copy(self)
        part.paths, part._sources, part.unreadable = self.paths[start:end], self._sources[start:end], []
        return part

    def _open(self, index: int) -> Image.Image:
        source = self._sources[index]
        if isinstance(source, Image.Image):
            return convert_image(source, self.paths[index], self.value_range, self._warn_once)
        return open_image(source, self.value_range, self._warn_once)

    def _warn_once(self, text: str, such_as: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("%s (found in %s)", text, such_as)

    def batches(self, batch_size: int = 64, num_workers: int = 0) -> UnlabeledBatches:
        """Return batches of the readable images, for `Trainer.predict` or a plain loop.

        Args:
            batch_size: Most images of a batch.
            num_workers: Processes that decode.
        """
        return UnlabeledBatches(self, batch_size, num_workers)


class UnlabeledBatches:
    """Batches of `images` [B, 3, S, S] and `index` [B]; unreadable files are left out and listed in the data set.

    The length counts all batches; a batch without any readable file is not yielded.
    """

    def __init__(self, dataset: UnlabeledImages, batch_size: int, num_workers: int) -> None:
        self.dataset, self.preprocessing = dataset, dataset.preprocessing
        self.loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self.dataset.unreadable.clear()
        for batch, faults in self.loader:
            self.dataset.unreadable += [(self.dataset.paths[item["index"]], item["fault"]) for item in faults]
            if batch is not None:
                yield batch


UnlabelledImages = UnlabeledImages  # the name in dtrap 0.1.0
