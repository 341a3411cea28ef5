"""Unpacking archives that are not trusted: nothing outside the target, no links, no devices, no bombs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

from rich.filesize import decimal

from ...errors import DtrapError

BLOCK = 1 << 20
HEADER_LIMIT = 4 << 20
DEEPEST = 100
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    ValueError,
    OverflowError,
)
_COMPRESSED: tuple[tuple[bytes, Callable[[Path], io.BufferedIOBase]], ...] = (
    (b"\x1f\x8b", gzip.GzipFile),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)


@dataclass(frozen=True)
class Limits:
    """The most that an archive may become: bytes and entries (files, folders and links)."""

    size: int
    entries: int = 1_000_000

    @classmethod
    def for_images(cls, archive: Path) -> Limits:
        """Three times the archive (images hardly shrink in an archive), at least 1 GB."""
        return cls(max(3 * archive.stat().st_size, 10**9))


def extract(archive: Path, target: Path, *, inside: str = "", last: str = "", limits: Limits | None = None) -> None:
    """Unpack an archive (zip, tar, also compressed with gzip, bzip2 or xz) and put its contents into a folder.

    All is unpacked into a temporary folder in or beside the target first; where anything is wrong, nothing arrives.
    Links are never made: one that points to a file in the archive becomes a copy of it, any other is an error.
    Owners, rights and times in the archive are ignored. A process killed while it unpacks leaves its
    `.<target>-unpacking-*`; one killed while it moves the contents in leaves the rest of them in
    `<target>/.<archive>-moving-in`, and the next call with the same archive and target moves that in.

    Args:
        archive: The archive; its kind is told by its contents.
        target: Folder, made if absent; what is in it stays.
        inside: Folder of the archive whose contents are wanted; all by default.
        last: Entry that is put in place after all others: where it is, the rest is there too.
        limits: Size and number of entries; `Limits.for_images` by default.

    Raises:
        DtrapError: Unsafe, damaged or too large archive, `inside` not in it, an entry that the target has already,
            or no room.
    """
    waiting = target / f".{archive.name}-moving-in"
    if is_empty_folder(waiting):
        waiting.rmdir()
    if not waiting.is_dir():
        place = target if target.is_dir() else target.parent
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-unpacking-", dir=place) as temporary:
            contents = Path(temporary, "contents")
            contents.mkdir()
            _unpack(archive, contents, limits or Limits.for_images(archive))
            if not (contents / inside).is_dir() or not (contents / inside / last).exists():
                found = ", ".join(sorted(os.listdir(contents))[:5])
                wanted = Path(inside, last).as_posix()
                raise DtrapError(f"{archive} has no '{wanted}'; found {found}. It is another archive than expected.")
            _check_free(contents / inside, target)
            target.mkdir(exist_ok=True)
            os.rename(contents / inside, waiting)
    _move_in(waiting, target, last)


def is_empty_folder(path: Path) -> bool:
    """Whether a path is a folder without anything in it."""
    return path.is_dir() and not any(path.iterdir())


def _unpack(archive: Path, folder: Path, limits: Limits) -> None:
    try:
        _Unpacking(archive, folder, limits).run()
    except _DAMAGED as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno is None:
            raise _damaged(archive, error) from error
        raise DtrapError(f"{archive} cannot be unpacked: {error.strerror}.") from error


def _damaged(archive: Path, error: Exception) -> DtrapError:
    return DtrapError(f"{archive} cannot be unpacked: {error}. Delete it and download it again.")


def _check_free(source: Path, target: Path) -> None:
    """Raises where the target has an entry of the source already; empty folders do not count."""
    for name in sorted(os.listdir(source)):
        place = target / name
        if os.path.lexists(place) and (place.is_symlink() or not is_empty_folder(place)):
            raise DtrapError(f"{place} exists and is not overwritten. Move it away and run the command again.")


def _move_in(waiting: Path, target: Path, last: str) -> None:
    _check_free(waiting, target)
    for name in sorted(os.listdir(waiting), key=lambda name: (name == last, name)):
        if (target / name).is_dir():
            (target / name).rmdir()
        os.rename(waiting / name, target / name)
    waiting.rmdir()


def _decompressed(archive: Path) -> io.BufferedIOBase:
    with open(archive, "rb") as file:
        start = file.read(6)
    for mark, opener in _COMPRESSED:
        if start.startswith(mark):
            return opener(archive)
    return open(archive, "rb")


class _TarStream:
    """What tarfile reads from, forwards only; `left` is the number of bytes that it may still read.

    tarfile takes long names, PAX headers and sparse maps into memory, whatever their size.
    """

    def __init__(self, file: io.BufferedIOBase, archive: Path) -> None:
        self.file, self.archive = file, archive
        self.position, self.left, self.last = 0, HEADER_LIMIT, b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise DtrapError(
                f"{self.archive} has a header of more than {decimal(HEADER_LIMIT)}, as no archive of images has. "
                "Nothing was unpacked; do not trust this archive."
            )
        block = self.file.read(size)
        self.position += len(block)
        self.left -= len(block)
        self.last = block
        return block

    def seek(self, position: int) -> None:
        if position < self.position:
            raise tarfile.ReadError("its entries overlap")
        while self.position < position and (block := self.file.read(min(BLOCK, position - self.position))):
            self.position += len(block)

    def tell(self) -> int:
        return self.position


@dataclass(frozen=True)
class _Entry:
    """One entry of an archive; a link has its goal, relative to the archive's top."""

    name: str
    kind: Literal["file", "folder", "link", "other"]
    size: int
    contents: IO[bytes] | None = None
    goal: str = ""


def _tar_entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> _Entry:
    if member.isdir():
        return _Entry(member.name, "folder", 0)
    if member.issym():
        return _Entry(member.name, "link", 0, goal=str(PurePosixPath(member.name).parent / member.linkname))
    if member.islnk():
        return _Entry(member.name, "link", 0, goal=member.linkname)
    if member.isfile():
        return _Entry(member.name, "file", member.size, archive.extractfile(member))
    return _Entry(member.name, "other", 0)


def _forget_headers(archive: Any) -> None:
    """Drop what tarfile keeps of all entries so far: a small archive can have many large headers."""
    archive.members.clear()
    archive.pax_headers.clear()


class _Unpacking:
    def __init__(self, archive: Path, folder: Path, limits: Limits) -> None:
        self.archive, self.folder, self.limits = archive, folder, limits
        self.declared = self.written = self.entries = 0

    def run(self) -> None:
        links = []
        for entry in self._listing():
            path = self.folder / self._safe(entry.name)
            self._count(entry)
            if entry.kind == "other":
                raise self._refused(entry.name, "is a device or another special file")
            if entry.kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
            elif entry.kind == "link":
                links.append((entry.name, path, entry.goal))
            elif entry.contents is not None:
                with entry.contents as contents:
                    self._write(entry.name, contents, path)
        for name, path, goal in links:
            self._copy_link(name, path, goal)

    def _listing(self) -> Iterator[_Entry]:
        if self._starts_as_tar():
            yield from self._tar_entries()
        elif zipfile.is_zipfile(self.archive):
            yield from self._zip_entries()
        else:
            raise tarfile.ReadError("neither a zip nor a tar archive")

    def _starts_as_tar(self) -> bool:
        with _decompressed(self.archive) as file:
            try:
                tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), tarfile.ENCODING, "surrogateescape")
            except _DAMAGED:
                return False
        return True

    def _zip_entries(self) -> Iterator[_Entry]:
        with zipfile.ZipFile(self.archive) as archive:
            members = archive.infolist()
            self._check_room(sum(member.file_size for member in members))
            for member in members:
                mode = member.external_attr >> 16
                if member.is_dir():
                    yield _Entry(member.filename, "folder", 0)
                elif stat.S_ISLNK(mode):
                    with archive.open(member) as link:
                        goal = os.fsdecode(link.read(4096))
                    yield _Entry(member.filename, "link", 0, goal=str(PurePosixPath(member.filename).parent / goal))
                elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    yield _Entry(member.filename, "other", 0)
                else:
                    yield _Entry(member.filename, "file", member.file_size, archive.open(member))

    def _tar_entries(self) -> Iterator[_Entry]:
        self._check_room(self.archive.stat().st_size)
        with _decompressed(self.archive) as file:
            stream = _TarStream(file, self.archive)
            with tarfile.open(fileobj=cast(Any, stream), mode="r:") as archive:
                while (member := archive.next()) is not None:
                    _forget_headers(archive)
                    stream.left = member.size
                    yield _tar_entry(archive, member)
                    stream.left = HEADER_LIMIT
            if stream.last.strip(b"\0"):
                raise tarfile.ReadError("a damaged header")

    def _safe(self, name: str) -> Path:
        """Path relative to the folder; an error for one that leads out of it on any system."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or any(character in name for character in "\\:\0"):
            raise self._refused(name, "has an absolute path or characters that no path should have (\\ : NUL)")
        if ".." in parts:
            raise self._refused(name, "leads out of the folder")
        if len(parts) > DEEPEST:
            raise self._refused(f"{name[:40]}...", f"lies in {len(parts) - 1} folders, expected less than {DEEPEST}")
        return Path(*parts)

    def _count(self, entry: _Entry) -> None:
        self.entries += 1
        self.declared += entry.size
        if self.entries > self.limits.entries:
            raise DtrapError(f"{self.archive} has more than {self.limits.entries} entries. Nothing was unpacked.")
        if max(self.declared, self.written) > self.limits.size:
            raise DtrapError(
                f"{self.archive} ({decimal(self.archive.stat().st_size)}) becomes more than "
                f"{decimal(self.limits.size)}: not what an archive of images does. Nothing was unpacked."
            )

    def _write(self, name: str, contents: IO[bytes], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            raise self._refused(name, "comes twice, or under two names that are one on this file system")
        with open(path, "xb") as file:
            while block := contents.read(BLOCK):
                self.written += len(block)
                if self.written > self.limits.size:
                    raise DtrapError(
                        f"{self.archive} becomes more than {decimal(self.limits.size)}. Nothing was unpacked."
                    )
                file.write(block)

    def _copy_link(self, name: str, path: Path, goal: str) -> None:
        if goal.startswith("/"):
            raise self._refused(name, f"is a link to {goal}")
        inside = Path(os.path.normpath(goal))
        if ".." in inside.parts:
            raise self._refused(name, f"is a link out of the folder ({goal})")
        if not (self.folder / inside).is_file() or self.folder / inside == path:
            raise self._refused(name, f"is a link to {goal}, which is no file of the archive")
        with open(self.folder / inside, "rb") as contents:
            self._write(name, contents, path)

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DtrapError(
                f"{self.folder.parents[1]} has {decimal(free)} free; "
                f"{self.archive.name} needs {decimal(needed)} unpacked. Make room and run the command again."
            )

    def _refused(self, name: str, reason: str) -> DtrapError:
        return DtrapError(f"{self.archive}: entry '{name}' {reason}. Nothing was unpacked; do not trust this archive.")
