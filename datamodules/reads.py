"""Notes what a scan reads, so that an index is made anew once any of it has changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Reads:
    """Absolute paths of what was read.

    Attributes:
        folders: Folders that were listed, also those without an image.
        files: Tables, lists and split files.
    """

    folders: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


_current: ContextVar[Reads | None] = ContextVar("reads", default=None)


@contextmanager
def noted_reads() -> Iterator[Reads]:
    """Within it, whatever is told to `note_folder` and `note_file` is in the `Reads`."""
    reads = Reads()
    before = _current.set(reads)
    try:
        yield reads
    finally:
        _current.reset(before)


def note_folder(path: str | os.PathLike[str]) -> None:
    """A folder is being listed."""
    reads = _current.get()
    if reads is not None:
        reads.folders.add(os.path.abspath(path))


def note_file(path: str | os.PathLike[str]) -> None:
    """A file is being read."""
    reads = _current.get()
    if reads is not None:
        reads.files.add(os.path.abspath(path))
