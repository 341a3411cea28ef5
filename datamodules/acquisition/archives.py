"""Unpack archives from the web: nothing outside the target folder, no links, no devices, no bombs.

`tarfile` (with its data filter) and `zipfile` read the archives and write the files. This module adds what neither of
them limits: size, number of entries, size of headers, duplicate names, and names that are unsafe on any system.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import platform
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from rich.filesize import decimal

from ...errors import DtrapError
from ...files import RERUN

HEADER_LIMIT = 4 << 20
DEEPEST = 100
LONGEST_LINK = 4096
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError, ValueError),
    *(struct.error, LookupError, ArithmeticError),  # of headers that the libraries do not check
)
_ZIP = (b"PK\3\4", b"PK\5\6")
_COMPRESSED: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)


@dataclass(frozen=True)
class Limits:
    """The largest unpacked size in bytes and the largest number of entries (files, folders and links)."""

    size: int
    entries: int = 1_000_000

    @classmethod
    def for_images(cls, archive: Path) -> Limits:
        """Return three times the size of the archive (images hardly compress), at least 1 GB."""
        return cls(max(3 * archive.stat().st_size, 10**9))


def extract(archive: Path, target: Path, *, inside: str = "", last: str = "", limits: Limits | None = None) -> None:
    """Unpack a zip or tar archive (the latter also compressed with gzip, bzip2 or xz) into a folder.

    The archive is unpacked into a temporary folder first, so that a bad archive leaves nothing in the target. Links are
    never created: a link to a file of the archive becomes a copy, any other link is an error. Owners, permissions and
    times in the archive are ignored.

    A process that is killed while it unpacks leaves a folder `.<target>-unpacking-*`. A process that is killed while it
    moves the contents into the target leaves the rest in `<target>/.<archive>-moving-in`; the next call with the same
    archive and target moves that rest.

    Args:
        archive: The archive; its format is detected from its contents.
        target: Folder to unpack into. It is created if it does not exist; files in it are kept.
        inside: Folder of the archive to unpack the contents of; the whole archive by default.
        last: Entry to move into the target after all others; if it exists there, so do the others.
        limits: Largest size and number of entries; `Limits.for_images` by default.

    Raises:
        DtrapError: The archive is unsafe, damaged, too large or lacks `inside` or `last`, the target already has one of
            its entries, or the disk is full.
    """
    waiting = target / f".{archive.name}-moving-in"
    if is_empty_folder(waiting):
        waiting.rmdir()
    if not waiting.is_dir():
        # On the disk of the target, so that every move below is a rename.
        place = target if target.is_dir() else target.parent
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-unpacking-", dir=place) as temporary:
            contents = Path(temporary, "contents")
            contents.mkdir()
            _unpack(archive, contents, limits or Limits.for_images(archive))
            if not (contents / inside).is_dir() or not (contents / inside / last).exists():
                found = ", ".join(sorted(os.listdir(contents))[:5])
                wanted = Path(inside, last).as_posix()
                raise DtrapError(f"{archive} has no '{wanted}'; found {found}. This is not the expected archive.")
            _check_conflicts(contents / inside, target)
            target.mkdir(exist_ok=True)
            # From here on everything is on disk: a later call completes what a kill interrupts.
            os.rename(contents / inside, waiting)
    _move_in(waiting, target, last)


def is_empty_folder(path: Path) -> bool:
    """Return whether a path is a folder that has no entries."""
    return path.is_dir() and not any(path.iterdir())


def check_free_space(folder: Path, needed: int, what: str) -> None:
    """Raise a DtrapError if the disk of a folder has fewer than `needed` bytes free; `what` names what needs them."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DtrapError(f"{folder} has {decimal(free)} free; {what} needs {decimal(needed)}. Free space there {RERUN}")


def _check_conflicts(source: Path, target: Path) -> None:
    """Raise a DtrapError if an entry of the source exists in the target and is not an empty folder."""
    for name in sorted(os.listdir(source)):
        place = target / name
        if os.path.lexists(place) and (place.is_symlink() or not is_empty_folder(place)):
            raise DtrapError(f"{place} exists and is not overwritten. Move it away {RERUN}")


def _move_in(waiting: Path, target: Path, last: str) -> None:
    _check_conflicts(waiting, target)
    for name in sorted(os.listdir(waiting), key=lambda name: (name == last, name)):
        if (target / name).is_dir():
            (target / name).rmdir()
        os.rename(waiting / name, target / name)
    waiting.rmdir()


def _unpack(archive: Path, folder: Path, limits: Limits) -> None:
    with open(archive, "rb") as file:
        start = file.read(6)
    entries = _Entries(archive, folder, limits)
    try:
        if start.startswith(_ZIP):
            _unpack_zip(archive, folder, entries)
        else:
            opener = next((opener for mark, opener in _COMPRESSED if start.startswith(mark)), open)
            _unpack_tar(archive, folder, entries, opener)
    except OSError as error:
        if error.errno is None:  # gzip and bz2 report damaged data like this
            raise _damaged(archive, error) from error
        raise DtrapError(f"{archive} cannot be unpacked: {error.strerror}.") from error
    except _DAMAGED as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> DtrapError:
    return DtrapError(f"{archive} cannot be unpacked: {error}. Delete it and download it again.")


class _Entries:
    """Checks each entry of an archive before it is written and counts it towards the limits."""

    def __init__(self, archive: Path, folder: Path, limits: Limits) -> None:
        self.archive, self.folder, self.limits = archive, folder, limits
        self.size = self.count = 0

    def check(self, name: str, size: int, is_folder: bool) -> Path:
        """Return where an entry belongs in the folder; its size is in bytes."""
        relative = self._relative(name)
        if not is_folder and not relative.parts:  # "./" is the folder itself in many tar archives
            raise self.refused("a file in it has no name")
        path = self.folder / relative
        if size < 0:  # tarfile accepts it; it would lower the sum
            raise self.refused(f"entry '{name}' has a negative size")
        self.count += 1
        self.add_size(size)
        if self.count > self.limits.entries:
            raise DtrapError(f"{self.archive} has more than {self.limits.entries} entries. Nothing was unpacked.")
        self.check_new(name, path, is_folder)
        return path

    def add_size(self, size: int) -> None:
        self.size += size
        if self.size > self.limits.size:
            raise DtrapError(
                f"{self.archive} ({decimal(self.archive.stat().st_size)}) unpacks to more than "
                f"{decimal(self.limits.size)}, which is too much for images. Nothing was unpacked."
            )

    def check_new(self, name: str, path: Path, is_folder: bool = False) -> None:
        # The file system decides: two names may be one file, as "a" and "A" on macOS.
        if os.path.lexists(path) and not (is_folder and path.is_dir()):
            raise self.refused(f"entry '{name}' appears twice, or is the same file as another on this file system")

    def refused(self, reason: str) -> DtrapError:
        return DtrapError(f"{self.archive}: {reason}. Nothing was unpacked; do not trust this archive.")

    def _relative(self, name: str) -> Path:
        """Return the entry's path, unless it could lead out of the folder on Linux, macOS or Windows.

        The libraries check names for the running system alone, and rename what they do not accept.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or any(character in name for character in "\\:\0"):
            raise self.refused(f"entry '{name}' has an absolute path or an unsafe character (\\ : NUL)")
        if ".." in parts:
            raise self.refused(f"entry '{name}' leads out of the folder")
        if len(parts) > DEEPEST:
            raise self.refused(
                f"entry '{name[:40]}...' lies in {len(parts) - 1} folders, expected fewer than {DEEPEST}"
            )
        return Path(*parts)


def _unpack_zip(path: Path, folder: Path, entries: _Entries) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_free_space(folder.parents[1], sum(member.file_size for member in members), path.name)
        for member in members:
            is_folder = member.filename.endswith("/")  # member.is_dir() fails for a name without characters
            entries.check(member.filename, member.file_size, is_folder)
            # zipfile would write a link as a file that holds the link's target, and a device as an empty file.
            if not is_folder and stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                raise entries.refused(f"entry '{member.filename}' is a link, a device or another special file")
            # No more than member.file_size bytes are written, whatever the compressed data hold.
            archive.extract(member, folder)


def _unpack_tar(path: Path, folder: Path, entries: _Entries, opener: Callable[..., Any]) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise DtrapError(
            f"Python {platform.python_version()} cannot unpack tar archives safely: tarfile.data_filter is missing. "
            f"Use Python 3.10.12, 3.11.4, 3.12 or later {RERUN}"
        )
    check_free_space(folder.parents[1], path.stat().st_size, path.name)
    links = []
    with opener(path, "rb") as file:
        stream = _HeaderLimit(file, entries)
        try:
            archive = tarfile.open(fileobj=cast(Any, stream), mode="r:")  # noqa: SIM115 - `with` closes the file
        except tarfile.ReadError:
            raise tarfile.ReadError("neither a zip nor a tar archive") from None
        while (member := archive.next()) is not None:
            # tarfile keeps the headers of all members; a small archive can have many large ones.
            archive.members.clear()  # type: ignore[attr-defined]
            archive.pax_headers.clear()  # type: ignore[attr-defined]
            is_link = member.issym() or member.islnk()
            place = entries.check(member.name, 0 if is_link else member.size, member.isdir())
            try:
                if is_link:
                    tarfile.data_filter(member, str(folder))
                    links.append((member.name, place, _link_target(member, entries)))
                else:
                    stream.left = member.size
                    archive.extract(member, folder, set_attrs=False, filter="data")
            except tarfile.FilterError as error:
                raise entries.refused(str(error)) from error
            stream.left = HEADER_LIMIT
        # tarfile takes a damaged header for the end of the archive, which is a block of zeros.
        if stream.last.strip(b"\0"):
            raise tarfile.ReadError("a damaged header")
    # After all files, since a symbolic link may come before its target.
    for name, place, target in links:
        _copy_target(name, place, target, entries)


def _link_target(member: tarfile.TarInfo, entries: _Entries) -> str:
    """Return the target of a link, relative to the top of the archive."""
    # The names of links are kept until all files are written, so they must not fill the memory.
    if len(member.name) + len(member.linkname) > LONGEST_LINK:
        raise entries.refused(f"entry '{member.name[:40]}...' is a link with more than {LONGEST_LINK} characters")
    # A symbolic link starts from its own folder, a hard link from the top of the archive.
    start = os.path.dirname(member.name) if member.issym() else ""
    return os.path.normpath(os.path.join(start, member.linkname))


def _copy_target(name: str, path: Path, target: str, entries: _Entries) -> None:
    source = entries.folder / target
    entries.check_new(name, path)
    if not source.is_file():
        raise entries.refused(f"entry '{name}' is a link to {target}, which is not a file of the archive")
    entries.add_size(source.stat().st_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)


class _HeaderLimit:
    """File for tarfile to read from, which raises once more than `left` bytes are read.

    tarfile reads long names, PAX headers and sparse maps into memory, whatever their size; a compressed archive of a
    few kilobytes could fill the memory. `left` is set to the size of a file while that file is read.
    """

    def __init__(self, file: IO[bytes], entries: _Entries) -> None:
        self.file, self.entries = file, entries
        self.left, self.last = HEADER_LIMIT, b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise self.entries.refused(f"it has a header of more than {decimal(HEADER_LIMIT)}")
        self.last = self.file.read(size)
        self.left -= len(self.last)
        return self.last

    def seek(self, position: int) -> None:
        # tarfile goes back only after a wrong size in a header. Each time, a compressed file is read from its start.
        if position < self.file.tell():
            raise tarfile.ReadError("its entries overlap")
        self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()
