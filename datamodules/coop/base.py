"""What the eleven sets of CoOp have in common: finding their folder, and reading or making its split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ...errors import DtrapError
from ..findings import COMPLETE, Finding, Findings, missing_images
from ..images import list_images
from ..index import ImageIndex, class_folders, listing, not_found
from ..published import PublishedDataModule
from ..views import TestPreprocessing
from .splits import Split, draw_split, index_split, read_split, row_places


class CoOpDataModule(PublishedDataModule):
    """Episodes of a set of CoOp: support from its training split, queries from its test split.

    The folder of the set is one of `folders` under the root, or the root itself. Its `split_file` (also
    gzip-compressed, with `.gz` after its name) assigns the images to training, validation and test; images that it
    names and that do not exist are in the index's `missing`. Without it the split is made from the files of the release
    by CoOp's rule. It differs from CoOp's own, which was drawn with another generator; a note of the index says so.

    Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022. Its DATASETS.md
    (https://github.com/KaiyangZhou/CoOp) links files and splits. CLIP-LoRA (Zanella and Ben Ayed, CVPRW 2024) uses the
    template "a photo of a {}." for all eleven sets: set `template`.

    Attributes:
        folders: Names of the set's folder under the root: CoOp's, then those of other projects.
        split_file: Name of CoOp's split file in that folder; empty if the release has CoOp's split.
        image_folder: Folder in it that the paths of the split start from.
        signs: Files or folders by which the set's folder is recognized without a split file.
        excluded: Folders next to the class folders that are not classes.
        renamed: Class names that differ from the folders' names.
    """

    all_way_preprocessing: ClassVar[TestPreprocessing] = "backbone"
    folders: ClassVar[tuple[str, ...]]
    split_file: ClassVar[str] = ""
    image_folder: ClassVar[str] = "images"
    signs: ClassVar[tuple[str, ...]]
    excluded: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}

    def read(self, findings: Findings) -> ImageIndex:
        """Read the split file, or make a split, and list the folders of the images that it names."""
        folder = self.find_folder()
        file = self.split_in(folder)
        images = folder / self.image_folder
        if not images.is_dir():
            raise DtrapError(
                f"{self.title}: {folder} has no folder {self.image_folder} with the images. "
                "Unpack them there, or correct data.root."
            )
        if file is None and self.split_file:
            text = (
                "the split was made from the release, with another generator than CoOp's. It is not CoOp's own split."
            )
            findings.note(Finding(f"no {self.split_file} in {folder}: {text}"))
        split = self.make_split(folder, findings) if file is None else read_split(file)
        index = index_split(split, images)
        if index.missing:
            missing_images(findings, index, self.root, row_places(split, images, file.name if file else "split"))
        return index

    def find_folder(self) -> Path:
        """Return the folder of the set.

        Raises:
            DataNotFound: There is none; the message says what was looked for.
        """
        named = [self.root / name for name in self.folders if (self.root / name).is_dir()]
        here = self.root.resolve().parts
        if any(here[-len(parts) :] == parts for parts in (Path(name).parts for name in self.folders)):
            named.append(self.root)
        for folder in (*named, self.root):
            if self.split_in(folder) is not None:
                return folder
        signed = []
        for folder in (*named, self.root):
            own = (*self.signs, self.image_folder) if folder in named and self.image_folder else self.signs
            if any((folder / name).exists() for name in own):
                signed.append(folder)
        if signed:  # SUN397's image folder has the same name as the set's folder, so one with images comes first
            return next((folder for folder in signed if (folder / self.image_folder).is_dir()), signed[0])
        looked_for = dict.fromkeys(filter(None, (self.split_file, *self.signs, self.image_folder)))
        places = [str(Path(folder, name)) for folder in self.folders for name in looked_for]
        raise not_found(self.root, [*places, *filter(None, (self.split_file, *self.signs))], self.title, "data")

    def split_in(self, folder: Path) -> Path | None:
        """Return the split file in a folder, or None."""
        names = (self.split_file, f"{self.split_file}.gz") if self.split_file else ()
        return next((folder / name for name in names if (folder / name).is_file()), None)

    def make_split(self, folder: Path, findings: Findings) -> Split:
        """Split every class folder into 50% training, 20% validation and 30% test images."""
        return draw_split(self.images_by_class(folder, findings))

    def images_by_class(self, folder: Path, findings: Findings) -> dict[str, list[str]]:
        """Return the paths under the image folder of each class's images, in the order of the class folders' names.

        Raises:
            DtrapError: There are no class folders, or two have the same class name.
        """
        images = folder / self.image_folder
        found: dict[str, list[str]] = {}
        for name in class_folders(images):
            if name in self.excluded:
                continue
            clean = self.class_name(name)
            if clean in found:
                raise DtrapError(
                    f"{images}: duplicate class name '{clean}', the second time of {name}. Remove one of the folders."
                )
            found[clean] = [f"{name}/{Path(path).name}" for path in list_images(images / name)]
        if not found:
            raise self.lacks(images, "class folders")
        return self.with_images(found, findings)

    def with_images(self, found: Mapping[str, list[str]], findings: Findings) -> dict[str, list[str]]:
        """Return the classes that have images; the others are a fault, or a note where `small_classes` is "skip"."""
        empty = [name for name, paths in found.items() if not paths]
        if empty:
            text = f"no image in the class folder of {listing(empty)}"
            findings.fault(Finding(text), COMPLETE, "small_classes")
            findings.note(Finding(f"{text}: left out"))
        return {name: paths for name, paths in found.items() if paths}

    def class_name(self, folder: str) -> str:
        """Return the class name of a class folder for the prompt."""
        return self.renamed.get(folder, folder).replace("_", " ")

    def lacks(self, folder: Path, what: str) -> DtrapError:
        """Return the error for a release that no split can be made of."""
        if not self.split_file:
            return DtrapError(f"{self.title}: {folder} has no {what}. {COMPLETE}.")
        return DtrapError(
            f"{self.title}: {folder} has no {what} to make a split of. {COMPLETE}, or put CoOp's "
            f"{self.split_file} into the folder of the set (links: DATASETS.md of https://github.com/KaiyangZhou/CoOp)."
        )

    def file_in(self, folder: Path, *names: str) -> Path:
        """Return the first of the files that exists in a folder of the release.

        Raises:
            DtrapError: None exists; the message names the split file that can be used instead.
        """
        for name in names:
            if (folder / name).is_file():
                return folder / name
        raise self.lacks(folder, " or ".join(names))
