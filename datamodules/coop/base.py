"""What the eleven sets of CoOp have in common: finding their folder, and reading or making its split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ...errors import DtrapError
from ..findings import COMPLETE, Finding, Findings, missing_images
from ..index import DataNotFound, ImageIndex, class_folders, listing
from ..places import FolderTree, inner, list_place, resolve, unread, unwrapped
from ..published import PublishedDataModule
from ..views import TestPreprocessing
from ..walk import list_images
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
        members: Some names in the image folder, by which it is recognized elsewhere.
        signs: Files or folders by which the set's folder is recognized without a split file.
        excluded: Folders next to the class folders that are not classes.
        renamed: Class names that differ from the folders' names.
    """

    all_way_preprocessing: ClassVar[TestPreprocessing] = "backbone"
    folders: ClassVar[tuple[str, ...]]
    split_file: ClassVar[str] = ""
    image_folder: ClassVar[str] = "images"
    members: ClassVar[tuple[str, ...]] = ()
    signs: ClassVar[tuple[str, ...]]
    excluded: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}

    def read(self, findings: Findings) -> ImageIndex:
        """Read the split file, or make a split, and list the folders of the images that it names."""
        folder = self.find_folder()
        file = self.split_in(folder)
        split = None if file is None else read_split(file)
        images = self.find_images(folder, split)
        if images != folder / self.image_folder:
            findings.note(Finding(f"the images are read from {images}"))
        if split is None and self.split_file:
            text = (
                "the split was made from the release, with another generator than CoOp's. It is not CoOp's own split."
            )
            findings.note(Finding(f"no {self.split_file} in {folder}: {text}"))
        split = self.make_split(folder, images, findings) if split is None else split
        index = index_split(split, images)
        if index.missing:
            places = row_places(split, images, file.name if file else "split")
            missing_images(findings, index, self.tree, places)
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
        lower = self._find_lower()
        if lower is not None:
            return lower
        looked_for = [*filter(None, (self.split_file, *self.signs))]
        places = [str(Path(folder, name)) for folder in self.folders for name in looked_for]
        error = self.nothing(places, "data", looked_for)
        if named and isinstance(error, DataNotFound):
            holds = list_place(named[0])
            found = listing([*(f"{name}/" for name in holds.folders), *holds.files]) or "nothing"
            error = DataNotFound(f"{error} {named[0]} holds {found}.")
        raise error

    def _find_lower(self) -> Path | None:
        """Return the folder of the set some levels lower, or under a name in another case.

        Raises:
            DtrapError: There are several split files of the set.
        """
        splits = self.tree.files_called([self.split_file, f"{self.split_file}.gz"]) if self.split_file else []
        folders = list(dict.fromkeys(path.parent for path in splits))
        if len(folders) > 1:
            several = ", ".join(map(str, folders[:3]))
            raise DtrapError(f"{self.title}: {self.split_file} is in {several}. Give one: --data.root {folders[0]}")
        if folders:
            return folders[0]
        signed = (place.path for place in self.tree.places if any(resolve(place, sign) for sign in self.signs))
        return next(signed, None)

    def find_images(self, folder: Path, split: Split | None) -> Path:
        """Return the folder that the paths of the split start from; it may be inside itself or lie elsewhere.

        Args:
            folder: Folder of the set.
            split: The split, if there is a file of it.

        Raises:
            DtrapError: There is none.
        """
        rows = [row for part in (split or {}).values() for row in part]
        wanted = {row.path.partition("/")[0] for row in rows} or set(self.members)
        usual = resolve(list_place(folder), self.image_folder) if self.image_folder else folder
        there = usual is not None and any((list_place(usual).folders, list_place(usual).files))
        found = inner(usual if usual and there else folder, wanted)
        if found is not None:
            return found
        if usual is None or not usual.is_dir():
            raise DtrapError(
                f"{self.title}: {folder} has no folder {self.image_folder} with the images."
                f"{unread(FolderTree(folder))} Unpack them there, or correct --data.root."
            )
        return unwrapped(usual)

    def split_in(self, folder: Path) -> Path | None:
        """Return the split file in a folder, or None."""
        names = (self.split_file, f"{self.split_file}.gz") if self.split_file else ()
        found = (resolve(list_place(folder), name) for name in names)
        return next((path for path in found if path), None)

    def make_split(self, folder: Path, images: Path, findings: Findings) -> Split:
        """Split every class folder into 50% training, 20% validation and 30% test images.

        Args:
            folder: Folder of the set, with the lists of its release.
            images: Folder of the images.
            findings: Where faults are recorded.
        """
        return draw_split(self.images_by_class(images, findings))

    def images_by_class(self, images: Path, findings: Findings) -> dict[str, list[str]]:
        """Return the paths under the image folder of each class's images, in the order of the class folders' names.

        Raises:
            DtrapError: There are no class folders, or two have the same class name.
        """
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
            path = resolve(list_place(folder), name)
            if path is not None:
                return path
        raise self.lacks(folder, " or ".join(names))
