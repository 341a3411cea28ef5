"""Find images in folders: one rule for every command, which no entry of a folder can stop or hang."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DtrapError
from .formats import HEIF_ENDINGS

# What cameras, browsers, scanners and tools write and Pillow decodes itself; never what formats.py refuses. Pillow
# recognizes the format by the content, not by the ending.
IMAGE_ENDINGS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".webp", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm"),
        *(".pbm", ".pnm", ".tga", ".ico", ".cur", ".icns", ".pcx", ".dds", ".psd", ".qoi", ".sgi", ".xbm", ".xpm"),
        *HEIF_ENDINGS,  # read by a package; without it they are reported as unreadable
    )
)

# Files and folders that operating systems and file servers put next to pictures; some hold thumbnails of them.
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
SYSTEM_FOLDERS = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "#recycle", "system volume information", "lost+found")
)

KINDS_SHOWN = 5
BROKEN = "broken link"
READ_ALREADY = "link to a folder that is read already"

_SPECIAL = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
}


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        images: Paths of the image files, sorted.
        left_out: Paths of the other files by reason: the ending in lower case such as ".dcm", or what an entry is, such
            as "FIFO".
        faults: (path, reason) of folders that cannot be read, and of entries that cannot be what their name says: an
            image, or a folder behind a broken link.
    """

    images: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Append what another folder holds."""
        self.images += other.images
        for reason, paths in other.left_out.items():
            self.left_out.setdefault(reason, []).extend(paths)
        self.faults += other.faults


def walk(
    folder: str | os.PathLike[str], *, recursive: bool = True, within: str | os.PathLike[str] | None = None
) -> Found:
    """Find the images in a folder and its sub-folders by their endings, in any case.

    Hidden entries and those of operating systems (`__MACOSX`, `Thumbs.db`) are passed over. Links to folders are
    followed, except into the folder itself and back to one that it is in. Nothing is opened but folders.

    Args:
        folder: An existing folder.
        recursive: Whether sub-folders belong to it.
        within: Folder of the data set, whose parts are read anyway: links into it are not followed. None for `folder`.
    """
    found, start = Found(), os.fspath(folder)
    base = os.path.realpath(start if within is None else within)
    waiting = deque([(start, os.path.realpath(start))])
    links: deque[tuple[str, str]] = deque()
    read: set[str] = set()
    follows = False
    while waiting or links:
        # Links last, so that a folder is listed under its own name. What they lead to may be read already.
        follows = follows or not waiting
        path, real = waiting.popleft() if waiting else links.popleft()
        if follows and real in read:
            found.left_out.setdefault(READ_ALREADY, []).append(path)
            continue
        read.add(real)
        for entry in _entries(path, found):
            kind = _kind_of(entry)
            if kind != "folder":
                _add_file(found, entry, kind)
            elif recursive and entry.name.lower() not in SYSTEM_FOLDERS:
                if not entry.is_symlink():
                    waiting.append((entry.path, os.path.join(real, entry.name)))
                elif _leads_back(target := os.path.realpath(entry.path), real, base):
                    found.left_out.setdefault(READ_ALREADY, []).append(entry.path)
                else:
                    links.append((entry.path, target))
    found.images.sort()
    return found


def list_images(folder: str | os.PathLike[str], recursive: bool = False) -> list[str]:
    """Return the sorted paths of the image files in a folder; see `walk`."""
    return walk(folder, recursive=recursive).images


def list_folders(root: str | os.PathLike[str]) -> list[str]:
    """Return the sorted names of the folders in a folder, links to folders included; no hidden ones.

    Raises:
        DtrapError: The folder cannot be read.
    """
    found = Found()
    if os.path.isdir(root) and not os.access(root, os.X_OK):  # its names can be read perhaps, but nothing behind them
        found.faults.append((os.fspath(root), "the folder cannot be read (Permission denied)"))
    names = sorted(
        entry.name
        for entry in _entries(os.fspath(root), found)
        if _kind_of(entry) == "folder" and entry.name.lower() not in SYSTEM_FOLDERS
    )
    if found.faults:
        path, reason = found.faults[0]
        raise DtrapError(f"{path}: {reason}. Fix its permissions or its disk, or give another folder.")
    return names


def left_out_line(left_out: dict[str, list[str]]) -> str:
    """Return a line such as "20 files left out: 12 .dcm, 8 .svg"; an empty string for nothing."""
    counts = sorted(((len(paths), reason) for reason, paths in left_out.items()), key=lambda kind: (-kind[0], kind[1]))
    total = sum(count for count, _ in counts)
    shown = ", ".join(f"{count:,} {reason}" for count, reason in counts[:KINDS_SHOWN])
    rest = sum(count for count, _ in counts[KINDS_SHOWN:])
    if not total:
        return ""
    return f"{total:,} file{'' if total == 1 else 's'} left out: {shown}" + (f", {rest:,} others" if rest else "")


def _leads_back(target: str, here: str, base: str) -> bool:
    """Whether a link leads to a folder above, or to a part of the data set that is read anyway (not a hidden one)."""
    place = Path(target)
    if Path(here).is_relative_to(place) or Path(base).is_relative_to(place):
        return True
    return place.is_relative_to(base) and not any(part.startswith(".") for part in place.relative_to(base).parts)


def _entries(path: str, found: Found) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder that are not hidden; what stops the reading becomes a fault."""
    try:
        with os.scandir(path) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        found.faults.append((path, f"the folder cannot be read ({reason_of(error)})"))


def _kind_of(entry: os.DirEntry[str]) -> str:
    """Return "folder", "file", or what else an entry is; a plain file or folder costs no call to the disk."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return _SPECIAL.get(stat.S_IFMT(entry.stat().st_mode), "no file")
    except FileNotFoundError:
        return BROKEN
    except OSError as error:  # a link loop, a stale handle of a network disk, a folder that cannot be searched
        return reason_of(error)


def _add_file(found: Found, entry: os.DirEntry[str], kind: str) -> None:
    """Record an entry that is not a folder."""
    if entry.name.lower() in SYSTEM_FILES:
        return
    ending = os.path.splitext(entry.name)[1].lower()
    image = ending in IMAGE_ENDINGS
    if kind == "file":
        if image:
            found.images.append(entry.path)
        else:
            found.left_out.setdefault(ending or "without an ending", []).append(entry.path)
    elif image or kind not in {*_SPECIAL.values(), BROKEN} or (kind == BROKEN and not ending):
        found.faults.append((entry.path, kind))
    else:
        found.left_out.setdefault(kind, []).append(entry.path)


def reason_of(error: OSError) -> str:
    """Return the system's words for an error, such as "Permission denied"."""
    return error.strerror or str(error) or type(error).__name__


def joined(parts: Iterable[Found]) -> Found:
    """Return what several folders hold together, in their order."""
    whole = Found()
    for part in parts:
        whole.add(part)
    return whole
