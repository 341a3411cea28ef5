"""Unpacking archives that are not trusted: nothing outside the target, no links, no devices, no bombs."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from rich.filesize import decimal

from ..errors import DtrapError

BLOCK = 1 << 20
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
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
    Owners, rights and times in the archive are ignored. A killed process leaves its `.<target>-unpacking-*`.

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
    place = target if target.is_dir() else target.parent
    place.mkdir(parents=True, exist_ok=True)
    limits = limits or Limits.for_images(archive)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-unpacking-", dir=place) as temporary:
        try:
            _Unpacking(archive, Path(temporary), limits).run()
        except _DAMAGED as error:
            raise DtrapError(f"{archive} cannot be unpacked: {error}. Delete it and download it again.") from error
        except OSError as error:
            raise DtrapError(f"{archive} cannot be unpacked: {error.strerror or error}.") from error
        if not Path(temporary, inside).is_dir() or not Path(temporary, inside, last).exists():
            found = ", ".join(sorted(os.listdir(temporary))[:5])
            wanted = Path(inside, last).as_posix()
            raise DtrapError(f"{archive} has no '{wanted}'; found {found}. It is another archive than expected.")
        _move_contents(Path(temporary, inside), target, last)


def _move_contents(source: Path, target: Path, last: str) -> None:
    names = sorted(os.listdir(source), key=lambda name: (name == last, name))
    for name in names:
        if os.path.lexists(target / name):
            raise DtrapError(f"{target / name} exists and is not overwritten. Move it away and run the command again.")
    target.mkdir(exist_ok=True)
    for name in names:
        os.rename(source / name, target / name)


@dataclass(frozen=True)
class _Entry:
    """One entry of an archive; a link has its goal, relative to the archive's top."""

    name: str
    kind: Literal["file", "folder", "link", "other"]
    size: int
    contents: IO[bytes] | None = None
    goal: str = ""


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
                    self._write(contents, path)
        for name, path, goal in links:
            self._copy_link(name, path, goal)

    def _listing(self) -> Iterator[_Entry]:
        if zipfile.is_zipfile(self.archive):
            yield from self._zip_entries()
        elif tarfile.is_tarfile(self.archive):
            yield from self._tar_entries()
        else:
            raise tarfile.ReadError("neither a zip nor a tar archive")

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
        with tarfile.open(self.archive, "r|*") as archive:
            for member in archive:
                if member.isdir():
                    yield _Entry(member.name, "folder", 0)
                elif member.issym():
                    goal = str(PurePosixPath(member.name).parent / member.linkname)
                    yield _Entry(member.name, "link", 0, goal=goal)
                elif member.islnk():
                    yield _Entry(member.name, "link", 0, goal=member.linkname)
                elif member.isfile():
                    yield _Entry(member.name, "file", member.size, archive.extractfile(member))
                else:
                    yield _Entry(member.name, "other", 0)

    def _safe(self, name: str) -> Path:
        """Path relative to the folder; an error for one that leads out of it on any system."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or "\\" in name or "\0" in name or (len(name) > 1 and name[1] == ":"):
            raise self._refused(name, "has an absolute path or characters that no path should have")
        if ".." in parts:
            raise self._refused(name, "leads out of the folder")
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

    def _write(self, contents: IO[bytes], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
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
            self._write(contents, path)

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DtrapError(
                f"{self.folder.parent} has {decimal(free)} free; {self.archive.name} needs {decimal(needed)} unpacked. "
                "Make room and run the command again."
            )

    def _refused(self, name: str, reason: str) -> DtrapError:
        return DtrapError(f"{self.archive}: entry '{name}' {reason}. Nothing was unpacked; do not trust this archive.")
