"""What reading a data set finds: faults, differences from the published set, and notes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import DtrapError, nearest
from .index import ImageIndex, class_folders, listing
from .places import FolderTree, dicom
from .walk import list_images

HINTS = 20  # comparing a thousand names with a thousand others takes seconds

COMPLETE = "Complete the download"


@dataclass(frozen=True)
class Finding:
    """One statement about a data set.

    Attributes:
        text: The statement.
        cases: The files, rows or classes that it holds for.
        files: The two files of each case, where cases are pairs of images.
    """

    text: str
    cases: Sequence[str] = ()
    files: Sequence[tuple[str, str]] = ()

    @property
    def first(self) -> str:
        """The statement and its first case as a sentence."""
        cases = f"{', the first' if len(self.cases) > 1 else ''}: {self.cases[0]}" if self.cases else ""
        return f"{self.text}{cases}".removesuffix(".") + ("" if cases.endswith("?") else ".")

    @property
    def brief(self) -> str:
        """The statement with its first cases on one line."""
        return f"{self.text}: {listing(self.cases, 3)}" if self.cases else self.text


def counted(cases: Sequence[str], one: str, many: str) -> Finding | None:
    """Return a finding such as "3 images are missing" with its cases; None where there is no case."""
    return Finding(f"{len(cases):,} {one if len(cases) == 1 else many}", cases) if cases else None


class Findings:
    """Record what is wrong with a data set, or raise the first fault.

    A run raises the first fault; `dtrap data check` reads on and lists all of them.

    Args:
        where: Data set and root, for the error.
        stop: Whether a fault is raised.
        skipped: Options that are "skip": faults that these allow are left out.

    Attributes:
        faults: What stops a run.
        differences: What differs from the published set without stopping a run.
        notes: What else a user should know.
    """

    def __init__(self, where: str, *, stop: bool, skipped: Collection[str] = ()) -> None:
        self.where, self.stop, self.skipped = where, stop, skipped
        self.faults: list[Finding] = []
        self.differences: list[Finding] = []
        self.notes: list[Finding] = []

    def fault(
        self, found: Finding | None, remedy: str, option: Literal["small_classes", "bad_images"] | None = None
    ) -> None:
        """Record or raise a fault.

        Args:
            found: The fault; None for nothing.
            remedy: What to do, without a full stop.
            option: Option that leaves the cases out where it is "skip".

        Raises:
            DtrapError: `stop` is set.
        """
        if found is None or option in self.skipped:
            return
        if self.stop:
            skip = f", or leave out what is missing with --data.{option} skip" if option else ""
            rest = " `dtrap data check` lists all." if len(found.cases) > 1 else ""
            raise DtrapError(f"{self.where}: {found.first} {remedy}{skip}.{rest}")
        self.faults.append(found)

    def difference(self, found: Finding | None) -> None:
        """Record a difference from the published set; None for nothing."""
        self.differences += [found] if found else []

    def note(self, found: Finding | None) -> None:
        """Record a note; None for nothing."""
        self.notes += [found] if found else []


def relative(path: str | os.PathLike[str], root: Path) -> str:
    """Return a path as seen from the root if it is inside, else the path."""
    return os.fspath(path).removeprefix(os.path.join(root, ""))


def note_place(findings: Findings, folder: Path, usual: Collection[Path], others: Sequence[Path] = ()) -> None:
    """Note that a set was found in an unusual place, and the folders like it that are not used.

    Args:
        findings: Where it is recorded.
        folder: Where the set is.
        usual: Its usual places.
        others: Folders next to it that have its classes as well.
    """
    if folder not in usual:
        findings.note(Finding(f"read from {folder}"))
    one, many = "other folder has its classes and is not used", "other folders have its classes and are not used"
    findings.note(counted([str(path) for path in others], one, many))


def missing_folders(folder: Path, expected: Collection[str], root: Path) -> Finding | None:
    """Find class folders that are missing, with the unexpected folder that one may have been renamed to.

    Args:
        folder: Folder of the class folders.
        expected: Names of all class folders of the published set.
        root: Folder that paths are shown from.
    """
    found = set(class_folders(folder))
    missing = [name for name in expected if name not in found]
    unknown = sorted(found.difference(expected)) if len(missing) <= HINTS else []
    cases = [f"{relative(folder / name, root)}: no such folder{_renamed(name, unknown)[1]}" for name in missing]
    return counted(cases, "class folder is missing", "class folders are missing")


def check_class_folders(
    findings: Findings, folder: Path, index: ImageIndex, classes: Collection[str], root: Path
) -> None:
    """Record class folders without an image, and note folders next to them whose images belong to no class.

    Args:
        findings: Where they are recorded.
        folder: Folder of the class folders.
        index: Images of the class folders.
        classes: Names of the class folders.
        root: Folder that paths are shown from.
    """
    used = {relative(path, folder).partition(os.sep)[0] for path in index.paths}
    empty = [folder / name for name in classes if name not in used and os.path.isdir(folder / name)]
    cases = [f"{relative(path, root)}: no image in it" for path in empty]
    findings.fault(counted(cases, "class folder is empty", "class folders are empty"), COMPLETE, "small_classes")
    others = [folder / name for name in class_folders(folder) if name not in classes]
    cases = [f"{relative(path, root)}: {len(list_images(path, recursive=True)):,} image(s)" for path in others]
    findings.note(counted(cases, "folder is of no class and not used", "folders are of no class and not used"))


def unknown_folders(folder: Path, classes: Iterable[str], expected: Collection[str], root: Path) -> Finding | None:
    """Find folders that are read as a class but are not in the published set, unless one is a renamed class."""
    unknown = [name for name in classes if name not in expected]
    renamed = {_renamed(name, unknown)[0] for name in expected if not (folder / name).is_dir()}
    cases = [
        f"{relative(folder / name, root)}: no such class.{nearest(name, expected)}"
        for name in unknown
        if name not in renamed
    ]
    return counted(cases, "folder is not a class of the published set", "folders are not classes of the published set")


def missing_images(findings: Findings, index: ImageIndex, tree: FolderTree, rows: Mapping[str, str]) -> None:
    """Record files that a table or split names and that do not exist; a folder without any is one case.

    Args:
        findings: Where they are recorded.
        index: With the missing files.
        tree: The folders below the root, where files of the same names may be.
        rows: Row and class of each missing file.
    """
    root = tree.root
    by_folder = Counter(os.path.dirname(path) for path in index.missing)
    used = _used_folders(index) if by_folder else set()
    gone, empty = [], []
    for folder, count in sorted(by_folder.items()):
        number = f"{count:,} image{'' if count == 1 else 's'}"
        if not os.path.isdir(folder):
            parent, name = os.path.split(folder)
            siblings = class_folders(parent) if os.path.isdir(parent) else []
            others = [other for other in siblings if os.path.join(parent, other) not in used]
            gone.append(f"{relative(folder, root)}: no such folder, {number} named{_renamed(name, others)[1]}")
        elif folder not in used and not list_images(folder):
            empty.append(f"{relative(folder, root)}: no image in it, {number} named")
        else:
            by_folder[folder] = 0
    single = [
        f"{rows[path]}: {relative(path, root)} does not exist"
        for path in index.missing
        if not by_folder[os.path.dirname(path)]
    ]
    named = FolderTree(Path(os.path.dirname(index.missing[0] if index.missing else "")), depth=1)
    remedy = _elsewhere(index, tree) or dicom(named).strip().removesuffix(".") or COMPLETE
    findings.fault(counted(gone, "folder is missing", "folders are missing"), remedy, "bad_images")
    findings.fault(counted(empty, "folder is empty", "folders are empty"), remedy, "bad_images")
    absent = counted(single, "image is named but does not exist", "images are named but do not exist")
    findings.fault(absent, remedy, "bad_images")


def _elsewhere(index: ImageIndex, tree: FolderTree) -> str:
    """Return the folder that has files with the names of missing images, as a remedy; empty if none has."""
    if not index.missing:
        return ""
    lost, used = {os.path.basename(path) for path in index.missing}, _used_folders(index)
    counts = {p.path: len(lost.intersection(p.files)) for p in tree.places if str(p.path) not in used}
    folder = max(counts, key=lambda path: counts[path], default=tree.root)
    found = counts.get(folder, 0)
    target = os.path.dirname(index.missing[0])
    return f"{found:,} files with their names are in {folder}: move them to {target}" if found else ""


def _used_folders(index: ImageIndex) -> set[str]:
    return {os.path.dirname(path) for path in index.paths}


def _renamed(name: str, others: Iterable[str]) -> tuple[str | None, str]:
    """Return the unexpected folder that a missing one may have been renamed to, and the hint for a message."""
    others = list(others)
    near = nearest(name, others)
    found = next((other for other in others if f"'{other}'" in near), None)
    return found, f"; '{found}' is there instead" if found else ""
