"""Checksums of large local files, kept between runs so that a file is read again only when it has changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from ... import parsing
from ...errors import DtrapError
from ...files import sha256, user_cache, write_atomically

# A smaller file is read faster than looked up.
LEAST_BYTES = 2**24
# A file that was changed just now may change again without another time.
SETTLED_SECONDS = 2.0


def kept_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, from the user's cache folder if the file has not changed since.

    An unchanged file has the same path, size, inode and times of its content and of its attributes; the last cannot be
    set by a program. An entry that cannot be read or written is ignored. Not for a checksum that decides whether a
    file is safe to open.
    """
    path = path.absolute()
    before = _state(path)
    if int(before["bytes"]) < LEAST_BYTES:
        return sha256(path)
    entry = user_cache() / "checksums" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    known = _known(entry, before)
    if known is not None:
        return known
    found = sha256(path)
    newest = max(int(before["modified_ns"]), int(before["changed_ns"])) / 1e9
    if _state(path) == before and time.time() - newest > SETTLED_SECONDS:
        with suppress(DtrapError, OSError):
            write_atomically(entry, json.dumps({**before, "sha256": found}))
    return found


def _state(path: Path) -> dict[str, str | int]:
    found = path.stat()
    return {
        "path": str(path),
        "bytes": found.st_size,
        "inode": found.st_ino,
        "modified_ns": found.st_mtime_ns,
        "changed_ns": found.st_ctime_ns,
    }


def _known(entry: Path, state: dict[str, str | int]) -> str | None:
    """Return the checksum of an entry with this state."""
    try:
        content = parsing.read_json(entry)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or any(content.get(name) != value for name, value in state.items()):
        return None
    found = content.get("sha256")
    digits = isinstance(found, str) and len(found) == 64 and set(found) <= set("0123456789abcdef")
    return found if digits else None
