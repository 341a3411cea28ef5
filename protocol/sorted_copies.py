"""Copies of images in a folder for each label: nothing is overwritten, and nothing is written outside."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DtrapError
from ..files import cannot_write, open_file

REMEDY = "or name another folder with --sort-into."
# What a name of a file must not have on some system; the names that Windows keeps for devices.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LONGEST = 200  # bytes; a system takes 255, and a number may follow


@dataclass
class Copied:
    """What became of the images.

    Attributes:
        copied: Number of copies.
        present: Number of images whose copy is there from before.
        faults: (path, reason) of images that could not be copied.
        renamed: (label, folder) where they differ.
    """

    copied: int = 0
    present: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)


def check_sort_into(folder: Path, given: Sequence[str]) -> None:
    """Raise a DtrapError before the work if images cannot be sorted into a folder.

    Args:
        folder: The folder; it need not exist.
        given: The folders whose images are sorted.
    """
    if folder.exists() and not folder.is_dir():
        raise DtrapError(f"--sort-into {folder} is a file; expected a folder. Name another one.")
    real = Path(os.path.realpath(folder))
    for source in given:
        if real.is_relative_to(os.path.realpath(source)):
            raise DtrapError(
                f"--sort-into {folder} is in {source}, whose images are sorted: the next run would find the copies. "
                "Name a folder outside."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, REMEDY) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise cannot_write(folder, PermissionError("Permission denied"), REMEDY)


def sort_into(folder: Path, paths: Sequence[str], labels: Sequence[str], all_labels: Sequence[str]) -> Copied:
    """Copy each image into the folder of its label.

    A copy gets the image's name, with a number where another file has it. An image whose copy is there already, of the
    same name and content, is not copied again.

    Args:
        folder: The folder of the labels' folders.
        paths: The images.
        labels: The label of each.
        all_labels: All labels there are, in an order that is the same in each run.

    Raises:
        DtrapError: A folder cannot be made, leads out of `folder`, or the disk is full.
    """
    done, names = Copied(), folder_names(all_labels)
    done.renamed = [(label, name) for label, name in names.items() if label != name and label in set(labels)]
    own: set[str] = set()  # of this run: an equal image of the same name is another one
    for path, label in zip(paths, labels, strict=True):
        place = _label_folder(folder, names[label])
        try:
            copied = _copy(path, place, own)
        except OSError as error:
            if error.filename is None or os.fspath(error.filename) != path:
                raise cannot_write(place, error, REMEDY) from error
            done.faults.append((path, str(error.strerror or error)))
            continue
        done.copied += copied
        done.present += not copied
    return done


def folder_names(labels: Sequence[str]) -> dict[str, str]:
    """Return a name for the folder of each label that every system can have; no two differ by their case alone."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for label in labels:
        name = _FORBIDDEN.sub("_", label.encode("utf-8", "replace").decode())
        name = re.sub(r"^[.\s]+|[.\s]+$", "_", _shortened(name)) or "_"
        name = f"{name}_" if _DEVICES.fullmatch(name) else name
        names[label] = next(each for each in _numbered(name, "") if each.casefold() not in taken)
        taken.add(names[label].casefold())
    return names


def _shortened(name: str) -> str:
    return name.encode()[:_LONGEST].decode(errors="ignore")


def _numbered(stem: str, ending: str) -> Iterator[str]:
    """Yield a name, then the name with 2, 3, ..."""
    yield stem + ending
    number = 2
    while True:
        yield f"{stem}_{number}{ending}"
        number += 1


def _label_folder(folder: Path, name: str) -> Path:
    """Make the folder of a label; refuse a link that leads out of the folder."""
    place = folder / name
    try:
        place.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise DtrapError(f"{place} is a file; expected a folder. Remove it {REMEDY}") from error
    except OSError as error:
        raise cannot_write(place, error, REMEDY) from error
    if os.path.realpath(place) != os.path.join(os.path.realpath(folder), name):
        raise DtrapError(f"{place} is a link to {os.path.realpath(place)}; expected a folder. Remove it {REMEDY}")
    return place


def _copy(path: str, place: Path, own: set[str]) -> bool:
    """Copy an image under the first free name; return False if an equal copy is there from before."""
    stem, ending = os.path.splitext(os.path.basename(path))
    for name in _numbered(stem, ending):
        target = place / name
        key = os.fspath(target).casefold()
        if key in own:
            continue
        there = os.path.lexists(target)
        if _is_equal(path, target) if there else _copy_new(path, target):
            own.add(key)
            return not there
    raise AssertionError("names do not end")


def _is_equal(path: str, target: Path) -> bool:
    return target.is_file() and not target.is_symlink() and filecmp.cmp(path, target, shallow=False)


def _copy_new(path: str, target: Path) -> bool:
    """Write a copy under a temporary name and give it its own if that is still free; never replace a file."""
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.tmp")
    try:
        with open_file(path) as source, temporary.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        with suppress(OSError):
            shutil.copystat(path, temporary)
        try:
            os.link(temporary, target)  # fails if the name is taken, which a rename does not
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                return False
            os.rename(temporary, target)
        return True
    finally:
        with suppress(OSError):
            temporary.unlink()
