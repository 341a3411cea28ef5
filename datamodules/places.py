"""Where a data set was unpacked: some levels lower than expected, inside itself, or under a name in another case."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote

from ..errors import DtrapError
from ..files import open_file
from .walk import IMAGE_ENDINGS, SYSTEM_FOLDERS

DEPTH = 5  # the longest official place has three levels, and unpacking may add two
MANY = 64  # the sub-folders of a folder with more are classes, and not searched
MOST = 3000  # folders of a search

_COPY = re.compile(r"(\s*\(\d+\)|\s-\scopy|-(master|main))+(?=\.\w+$|$)")
_DICOM = (".dcm", ".dicom", ".dic")
_DICOM_MARK = b"DICM"  # after 128 bytes; hospitals give files no ending, or the last number of their identifier
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
_TABLES = (".parquet", ".arrow", ".tfrecord", ".h5", ".hdf5", ".npz")
DICOM_REMEDY = "Convert them to PNG, for example with DCMTK: dcmj2pnm --write-png FILE.dcm FILE.png"


def plain_name(name: str) -> str:
    """Return a file or folder name without case, and without the " (1)" or "-master" that a download appends."""
    return _COPY.sub("", name.casefold())


def is_image(name: str) -> bool:
    """Return whether a file is called like an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS


@dataclass(frozen=True)
class Place:
    """A folder and the names in it."""

    path: Path
    folders: Sequence[str]
    files: Sequence[str]

    @cached_property
    def plain_names(self) -> dict[str, str]:
        """The shortest of the names that have the same plain name."""
        return {plain_name(name): name for name in sorted((*self.folders, *self.files), key=len, reverse=True)}


class FolderTree:
    """The folders some levels below a root and the names in them, level by level; nothing is opened.

    Hidden folders, those of operating systems, link loops and folders that cannot be listed are left out.

    Args:
        root: Where to start.
        depth: Levels below the root.
    """

    def __init__(self, root: Path, depth: int = DEPTH) -> None:
        self.root, self.depth = root, depth

    @cached_property
    def places(self) -> list[Place]:
        """All folders, the root first."""
        found: list[Place] = []
        seen: set[str] = set()
        waiting = deque([(self.root, 0)])
        while waiting and len(found) < MOST:
            path, depth = waiting.popleft()
            real = os.path.realpath(path)
            place = None if real in seen else _list_folder(path)
            seen.add(real)
            if place is None:
                continue
            found.append(place)
            if depth < self.depth and len(place.folders) <= MANY:
                waiting += [(path / name, depth + 1) for name in place.folders]
        return found

    @cached_property
    def endings(self) -> dict[str, tuple[int, str]]:
        """Number of the files with each ending, in lower case, and the first one; not those that `data fetch` keeps."""
        found: dict[str, tuple[int, str]] = {}
        for place in self.places:
            for name in place.files if place.path.name != "downloads" else ():
                ending = os.path.splitext(name)[1].lower()
                count, first = found.get(ending, (0, os.path.join(place.path, name)))
                found[ending] = (count + 1, first)
        return found

    def files_called(self, names: Iterable[str]) -> list[Path]:
        """Return the files with one of the names, in another case or as a second download as well."""
        wanted = [plain_name(name) for name in names]
        return [p.path / p.plain_names[name] for p in self.places for name in wanted if name in p.plain_names]

    def shown(self, path: Path) -> str:
        """Return a path as seen from the root."""
        return os.path.relpath(path, self.root)


def _list_folder(path: Path) -> Place | None:
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS:
                    continue
                try:
                    (folders if entry.is_dir() else files).append(entry.name)
                except OSError:  # a link to itself, or a stale handle
                    continue
    except OSError:
        return None
    return Place(path, sorted(folders), sorted(files))


def resolve(place: Place, relative: str) -> Path | None:
    """Return the file or folder at a relative path, under a name in another case or a " (1)" if need be; else None."""
    if os.path.exists(place.path / relative):
        return place.path / relative
    here, path = place, place.path
    for part in Path(relative).parts:
        name = here.plain_names.get(plain_name(part))
        if name is None:
            return None
        path = path / name
        here = list_place(path)
    return path


def inner(folder: Path, wanted: Collection[str], depth: int = 2) -> Path | None:
    """Return the folder, or the first one below it, with one of the wanted names directly in it; None if none has."""
    names = {name.casefold() for name in wanted}
    for place in FolderTree(folder, depth).places:
        if any(name.casefold() in names for name in (*place.folders, *place.files)):
            return place.path
    return None


def unwrapped(folder: Path) -> Path:
    """Return the folder, or a folder of its own name that it has instead of images: `cars_train/cars_train`."""
    for _ in range(2):
        place = _list_folder(folder)
        if place is None or any(map(is_image, place.files)):
            break
        same = [name for name in place.folders if plain_name(name) == plain_name(folder.name)]
        if len(same) != 1:
            break
        folder = folder / same[0]
    return folder


def best_place(tree: FolderTree, fits: Callable[[Place], bool], title: str, later: re.Pattern[str]) -> Path | None:
    """Return the folder that fits; of several the one called train, color or RGB, and last those called like `later`.

    Raises:
        DtrapError: Several fit equally well.
    """
    ranked: dict[int, list[Path]] = {}
    found: set[Path] = set()
    for place in tree.places:
        if fits(place) and found.isdisjoint(place.path.parents):  # Kaggle has PlantVillage once more inside itself
            found.add(place.path)
            # The name of the folder itself, or of one on the way to it: EuroSAT_RGB/2750, color/train.
            names = [plain_name(part) for part in (tree.root.name, *Path(tree.shown(place.path)).parts)[-2:]]
            preferred = any(re.search(r"^train(ing)?$|^colou?r$|rgb", name) for name in names)
            rank = 2 if any(later.search(name) for name in names) else 0 if preferred else 1
            ranked.setdefault(rank, []).append(place.path)
    if not ranked:
        return None
    best = ranked[min(ranked)]
    if len(best) > 1:
        several = ", ".join(map(str, best[:3]))
        raise DtrapError(f"{title}: several folders have its classes: {several}. Give one: --data.root {best[0]}")
    return best[0]


def beside(folder: Path, root: Path, fits: Callable[[Place], bool]) -> list[Path]:
    """Return the folders next to a folder below the root that fit as well."""
    place = None if folder == root else _list_folder(folder.parent)
    others = [folder.parent / name for name in (place.folders if place else ()) if name != folder.name]
    return [path for path in others if (other := _list_folder(path)) and fits(other)]


def list_place(folder: Path) -> Place:
    """Return the names in a folder; none if it cannot be listed."""
    return _list_folder(folder) or Place(folder, (), ())


def dicom(tree: FolderTree) -> str:
    """Return a sentence on DICOM files and what to do; empty if there is an image, or no DICOM file."""
    if not tree.endings.keys().isdisjoint(IMAGE_ENDINGS):
        return ""
    unnamed = [ending for ending in tree.endings if not ending.strip(".0123456789")][:MANY]
    kinds = [*_DICOM, *(ending for ending in unnamed if _is_dicom(tree.endings[ending][1]))]
    count = sum(tree.endings[ending][0] for ending in kinds if ending in tree.endings)
    if not count:
        return ""
    files = "is a DICOM file" if count == 1 else f"are {count:,} DICOM files"
    return f" There {files}, and no image that can be read. {DICOM_REMEDY}."


def _is_dicom(path: str) -> bool:
    with suppress(OSError), open_file(path) as file:
        return file.read(132)[128:] == _DICOM_MARK
    return False


def unread(tree: FolderTree) -> str:
    """Return what files there are instead of images, and what to do, as sentences; empty where there is nothing."""
    archive, table = (
        next((tree.endings[e][1] for e in kind if e in tree.endings), "") for kind in (_ARCHIVES, _TABLES)
    )
    if text := dicom(tree):
        return text
    if archive:
        return f" There is an archive, {archive}: if it is this set, unpack it there."
    if table:
        return f" There are tables of pictures such as {table}, which are not read: get the release with image files."
    return ""


_TRAIN = ("train", "training", "train_set", "training_set")
_TEST = ("test", "testing", "test_set", "testing_set", "val", "valid", "validation", "dev", "eval")


def check_no_splits(root: Path, argument: str, one_task: bool) -> None:
    """Raise a DtrapError where the folders under a user's root are training and test images instead of classes.

    Args:
        root: Folder of the class folders.
        argument: Option that it was given with, such as "root".
        one_task: Whether test images can be given with `query_root`.
    """
    place = list_place(root)
    for _ in range(2):  # folders around the parts
        if len(place.folders) != 1 or place.folders[0].casefold() in _TRAIN:
            break
        place = list_place(place.path / place.folders[0])
    train, test = (_part(place, names) for names in (_TRAIN, _TEST))
    named = {name.casefold() for name in place.folders}
    # A class may be called train: it has images, and no folder like it next to it.
    alone = train is not None and not _holds_images(train) and (not named.isdisjoint(_TEST) or len(named) == 1)
    if train is None or not (test is not None or alone):
        train, test = _alike(place)
    if train is not None:
        queries = f" --data.query_root {quote(str(test))}" if one_task and test and argument == "root" else ""
        wanted = quote(str(test if test and argument == "query_root" else train))
        raise DtrapError(
            f"{place.path} has the folders {', '.join(place.folders[:5])}, which are parts of a data set and no "
            f"classes. Give the folder of the class folders: --data.{argument} {wanted}{queries}"
        )


def _part(place: Place, names: Sequence[str]) -> Path | None:
    """Return the folder with one of the names that has class folders."""
    called = {name.casefold(): place.path / name for name in place.folders}
    found = (called[name] for name in names if name in called)
    return next((path for path in found if list_place(path).folders), None)


def _alike(place: Place) -> tuple[Path, Path] | tuple[None, None]:
    """Return two folders such as `seg_train` and `seg_test` with the same class folders, else Nones."""
    words = {
        name: {*re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).casefold())} for name in place.folders
    }
    trains, tests = ([name for name in words if not words[name].isdisjoint(part)] for part in (_TRAIN, _TEST))
    for train, test in ((first, second) for first in trains for second in tests if first not in tests):
        found = unwrapped(place.path / train), unwrapped(place.path / test)
        folders = [{*list_place(path).folders} for path in found]
        if not folders[0].isdisjoint(folders[1]) and not any(map(_holds_images, found)):
            return found
    return None, None


def _holds_images(folder: Path) -> bool:
    return any(map(is_image, list_place(folder).files))
