"""Which image has which label: paths only, nothing is decoded."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import DtrapError, nearest, visible
from ..files import printable
from .walk import Found, joined, left_out_line, list_folders, walk

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ImageIndex:
    """Paths and labels of a data set, in an order that is the same on every machine.

    Attributes:
        paths: Path of each image; its position in this list is the `sample_id` of a batch. For images without files,
            any text that identifies them.
        labels: Label of each image, an index into `class_names`.
        class_names: Names for the class prompts; a class may have no image.
        roots: Folders that contain the images; the fingerprint does not depend on where these are.
        missing: Files that a table or split names and that do not exist; they are not in `paths`.
        notes: What a user should know about the scan, one line each.
        splits: "train", "val" or "test" of each image; None for a set without a published split.
        groups: What an image shares with others that must not be on both sides of a split, such as the number of a
            patient; an image with "" is a group of its own. None where nothing is known.
        faults: (path, reason) of what could not be read while the folders were listed, and of images that must not be
            used; they are not in `paths`.
    """

    paths: list[str]
    labels: list[int]
    class_names: list[str]
    roots: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    splits: list[str] | None = None
    faults: tuple[tuple[str, str], ...] = ()
    groups: list[str] | None = None

    def fingerprint(self) -> str:
        """Return the SHA-256 of the relative paths, labels, splits and groups, by which a run recognizes its data."""
        digest = hashlib.sha256()
        columns = [[f"\t{cell}" for cell in column] for column in (self.splits, self.groups) if column is not None]
        rest = ["".join(cells) for cells in zip(*columns, strict=True)] if columns else [""] * len(self.paths)
        for position, (label, cells) in enumerate(zip(self.labels, rest, strict=True)):
            digest.update(f"{label}\t{self.relative(position)}{cells}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def relative(self, position: int) -> str:
        """Return the path of an image without the place of the data: number of the root, then the path in it."""
        path = self.paths[position]
        for number, root in enumerate(self.roots):
            if root == os.curdir and not os.path.isabs(path):
                return f"{number}/{path.replace(os.sep, '/')}"
            if path.startswith(prefix := prefix_of(root)):
                return f"{number}/{path[len(prefix) :].replace(os.sep, '/')}"
        return path

    def position(self, relative: str) -> int | None:
        """Return the position of the image with a relative path; None if there is none."""
        return self._positions.get(relative)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {self.relative(position): position for position in range(len(self.paths))}


def prefix_of(root: str) -> str:
    """Return what the paths in a folder begin with; the root of a disk ends with a separator already."""
    return root if os.path.dirname(root) == root else root + os.sep


def listing(names: Sequence[str], most: int = 5) -> str:
    """Return the first names, separated by commas, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def class_folders(root: str | os.PathLike[str]) -> list[str]:
    """Return the sorted names of the folders in a folder, without hidden ones."""
    return list_folders(root)


def first_of(root: Path, candidates: Iterable[str]) -> Path | None:
    """Return the first of the candidate files or folders under a root that exists."""
    places = [root / candidate for candidate in candidates]
    # A broken link is taken last: what reads it says so.
    return next((place for there in (os.path.exists, os.path.lexists) for place in places if there(place)), None)


def no_folder(path: Path) -> str:
    """Return what is wrong with a path that should be a folder, to follow it in a sentence."""
    return "is not a folder" if path.exists() else "does not exist"


class DataNotFound(DtrapError):
    """Nothing of a data set is under its root; an incomplete set raises another error."""


def not_found(root: Path, looked_for: Sequence[str], title: str, what: str, instead: str = "") -> DtrapError:
    """Return the error for data that were not found.

    Args:
        root: Folder that was searched.
        looked_for: Official places.
        title: Name of the set.
        what: What was not found.
        instead: Sentences on what is there instead, each with a space before it.
    """
    if not root.is_dir():
        return DtrapError(f"{title}: {root} {no_folder(root)}. Give --data.root FOLDER, where the data are.")
    most = 3
    places = "\n  ".join(looked_for[:most]) + (" and other places" if len(looked_for) > most else "")
    remedy = instead.strip() or "Give --data.root FOLDER, the folder that holds one of these."
    return DataNotFound(
        f"{title}: no {what} under {root}, there and up to five folders lower. Looked for: {places}\n{remedy}"
    )


def join(first: ImageIndex, second: ImageIndex, **changes: Any) -> ImageIndex:
    """Return the images of two indexes with the same classes, with changes of other fields."""
    both = {name: getattr(first, name) + getattr(second, name) for name in ("paths", "labels", "notes", "faults")}
    return replace(first, **(both | changes))


def index_class_folders(
    root: Path, folders: Sequence[str], class_names: Sequence[str], beside: Found | None = None
) -> ImageIndex:
    """Return the index of the images in one folder per class and its sub-folders; label i is `folders[i]`.

    Args:
        root: Folder of the class folders.
        folders: Their names; one may be absent.
        class_names: The class name of each.
        beside: What is next to the class folders and is reported with them.
    """
    parts = [walk(root / folder, within=root) if os.path.isdir(root / folder) else Found() for folder in folders]
    found = joined([beside or Found(), *parts])
    labels = [label for label, part in enumerate(parts) for _ in part.images]
    paths = [path for part in parts for path in part.images]
    direct = [os.path.join(root, folder) for folder in folders]
    below = sum(os.path.dirname(path) != direct[label] for path, label in zip(paths, labels, strict=True))
    notes = [
        *([f"{below:,} of {len(paths):,} images are in sub-folders of the class folders"] if below else []),
        *filter(None, (left_out_line(found.left_out), _same_names(paths, root))),
        *(
            f"no image in the class folder {folder}: {left_out_line(part.left_out)}"
            for folder, part in zip(folders, parts, strict=True)
            if part.left_out and not part.images
        ),
    ]
    return ImageIndex(
        paths, labels, list(class_names), roots=(str(root),), notes=tuple(notes), faults=tuple(found.faults)
    )


def _same_names(paths: Iterable[str], root: Path) -> str:
    """Return a note on files of one folder whose names differ in the ending only, such as X.jpg and X.png."""
    first: dict[str, str] = {}
    pairs = []
    for path in paths:
        other = first.setdefault(os.path.splitext(normal(path).casefold())[0], path)
        if other != path:
            pairs.append(f"{os.path.relpath(other, root)} and {os.path.basename(path)}")
    if not pairs:
        return ""
    return (
        f"{len(pairs):,} image{' has' if len(pairs) == 1 else 's have'} the name of another one with another ending, "
        f"and all are used: {listing(pairs, 3)}"
    )


def normal(name: str) -> str:
    """Return a name in Unicode's composed form: macOS stores an accented letter as two characters."""
    return unicodedata.normalize("NFC", name)


def spelled_as(names: Iterable[str], wanted: str) -> str:
    """Return the name that is the wanted one up to Unicode's form, or the wanted one itself."""
    return next((name for name in names if normal(name) == normal(wanted)), wanted)


def names_of_folders(root: Path, folders: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Return the class name of each folder: the given name, or else the folder's own in Unicode's composed form.

    Raises:
        DtrapError: A name is given for a folder that does not exist, two folders have the same name, or the name of a
            folder cannot be written into results.
    """
    given = {spelled_as(folders, folder): name for folder, name in names.items()}
    for folder in given:
        if folder not in folders:
            raise DtrapError(
                f"class_names has the folder '{folder}', which is not in {root}."
                f"{nearest(folder, folders)} Found: {listing(folders)}."
            )
    found = [given.get(folder, normal(folder)) for folder in folders]
    for name in found:
        if printable(name) != name:
            raise DtrapError(
                f"{visible(str(root))}: the name of the folder '{visible(name)}' is not UTF-8, so that it cannot "
                "be a class name in results and adapters. Rename the folder."
            )
    twice = sorted(name for name, count in Counter(found).items() if count > 1)
    if twice:
        raise DtrapError(
            f"class_names: duplicate class name '{twice[0]}' for folders of {root}. Give each folder its own name."
        )
    return found
