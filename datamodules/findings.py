"""What is found wrong with a data set, or worth knowing of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import nearest
from . import ImageIndex
from .images import list_images
from .index import class_folders


@dataclass(frozen=True)
class Finding:
    """Something worth telling: one line, and the cases of it (each with its file, row or class)."""

    text: str
    cases: Sequence[str] = ()


@dataclass
class Scan:
    """What was found of a set: the index of all that can be used, faults, and notes that are no faults."""

    index: ImageIndex
    faults: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)


def told(cases: Sequence[str], one: str, many: str) -> list[Finding]:
    """A finding such as "3 images are missing" with its cases; an empty list where there is no case."""
    return [Finding(f"{len(cases):,} {one if len(cases) == 1 else many}", cases)] if cases else []


def relative(path: str | os.PathLike[str], root: Path) -> str:
    """A path as seen from the root, where it is inside."""
    return os.fspath(path).removeprefix(os.path.join(root, ""))


def folder_faults(folder: Path, expected: Sequence[str], root: Path) -> list[Finding]:
    """Class folders that are missing (perhaps renamed), without an image, or unknown.

    Args:
        folder: Folder of the class folders.
        expected: Names of all class folders of the published set.
        root: Where paths are told from.
    """
    found = class_folders(folder)
    unknown = [name for name in found if name not in expected]
    missing, renamed = [], set()
    for name in expected:
        if name not in found:
            here, hint = renamed_to(name, unknown)
            renamed.add(here)
            missing.append(f"{relative(folder / name, root)}: no such folder{hint}")
    empty = [name for name in expected if name in found and not list_images(folder / name)]
    strange = [name for name in unknown if "___" in name and name not in renamed]
    return [
        *told(missing, "class folder is missing", "class folders are missing"),
        *told(
            [f"{relative(folder / name, root)}: no image in it" for name in empty],
            "class folder is empty",
            "class folders are empty",
        ),
        *told(
            [f"{relative(folder / name, root)}: no such class.{nearest(name, expected)}" for name in strange],
            "folder is no class of the published set",
            "folders are no classes of the published set",
        ),
    ]


def unused_folders(folder: Path, expected: Sequence[str], index: ImageIndex, root: Path) -> list[Finding]:
    """Folders beside the class folders whose images belong to no class, told as a note."""
    used = {os.path.dirname(path) for path in index.paths}
    others = [name for name in class_folders(folder) if name not in expected and os.path.join(folder, name) not in used]
    cases = [f"{relative(folder / name, root)}: {len(list_images(folder / name)):,} image(s)" for name in others]
    return told(cases, "folder is of no class and not used", "folders are of no class and not used")


def renamed_to(name: str, others: Sequence[str]) -> tuple[str | None, str]:
    """Of the folders that nothing asked for the one that may be a missing one by another name, and the hint."""
    near = nearest(name, others)
    found = next((other for other in others if f"'{other}'" in near), None)
    return found, f"; '{found}' is there instead" if found else ""


def missing_faults(index: ImageIndex, root: Path, rows: Mapping[str, str] | None = None) -> list[Finding]:
    """Files that a table or split names and that do not exist; a folder without any is one case.

    Args:
        index: With the missing files.
        root: Where paths are told from.
        rows: Row and class of missing files, to tell with the path.
    """
    by_folder = Counter(os.path.dirname(path) for path in index.missing)
    used = {os.path.dirname(path) for path in index.paths} if by_folder else set()
    gone, empty = [], []
    for folder, count in sorted(by_folder.items()):
        number = f"{count:,} image{'' if count == 1 else 's'}"
        if not os.path.isdir(folder):
            parent, name = os.path.split(folder)
            others = [other for other in _folders_in(parent) if os.path.join(parent, other) not in used]
            gone.append(f"{relative(folder, root)}: no such folder, {number} named{renamed_to(name, others)[1]}")
        elif folder not in used and not list_images(folder):
            empty.append(f"{relative(folder, root)}: no image in it, {number} named")
        else:
            by_folder[folder] = 0
    rows = rows or {}
    single = [
        f"{rows[path]}: {relative(path, root)} does not exist" if path in rows else relative(path, root)
        for path in index.missing
        if not by_folder[os.path.dirname(path)]
    ]
    return [
        *told(gone, "folder is missing", "folders are missing"),
        *told(empty, "folder is empty", "folders are empty"),
        *told(single, "image is named but does not exist", "images are named but do not exist"),
    ]


def _folders_in(folder: str) -> list[str]:
    return class_folders(folder) if os.path.isdir(folder) else []
