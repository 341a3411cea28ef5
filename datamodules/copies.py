"""Find files with the same content under different names."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

from ..files import open_file, sha256

SAMPLED = 4096  # bytes at both ends of a file


def find_copies(paths: Iterable[str]) -> list[list[str]]:
    """Return groups of two or more files with the same content, each in the order of the paths.

    Only files of the same size are opened, and only those with the same beginning and end are read to the end. Files
    that cannot be read, and empty ones, are in no group.

    Args:
        paths: The files, each once.
    """
    groups = [list(paths)]
    for key in (_size, _ends, sha256):
        groups = [group for before in groups for group in _split(before, key)]
    return groups


def _split(paths: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Return the paths that share a key with another one."""
    found: defaultdict[Hashable, list[str]] = defaultdict(list)
    for path in paths:
        try:
            value = key(path)
        except OSError:
            continue
        if value:
            found[value].append(path)
    return [group for group in found.values() if len(group) > 1]


def _size(path: str) -> int:
    return os.stat(path).st_size


def _ends(path: str) -> bytes:
    with open_file(path) as file:
        first = file.read(SAMPLED)
        file.seek(max(0, _size(path) - SAMPLED))
        return hashlib.sha256(first + file.read(SAMPLED)).digest()
