"""What a logger may be sent: values without the folders and files of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A drive, a share, a home folder or a file's address, on whatever system the value was written.
_ABSOLUTE = re.compile(r"([A-Za-z]:[\\/]|\\\\|/|~|\.{1,2}[\\/]|file:)")
_WITHIN = re.compile(
    r"(?:(?<=[\s'\"=,;(\[{])|(?<=file:))(?:~|\.{1,2})?[\\/][^\s'\",;)\]}]+|\b[A-Za-z]:[\\/][^\s'\",;)\]}]+"
)
_LEFT_OUT = object()


def without_local_paths(value: Any) -> Any:
    r"""Return a config's values without local paths; a key whose value is a path is left out.

    A text is a local path if it begins as one (`/data`, `~/data`, `../data`, `C:\\data`) or names something that is
    here. In a longer text a path becomes "…". Names such as `openai` or `methods/baseline.yaml` stay.
    """
    found = _without(value)
    return None if found is _LEFT_OUT else found


def is_local_path(text: str) -> bool:
    """Return whether a text is a path of this machine."""
    if _ABSOLUTE.match(text):
        return "\n" not in text and not text.startswith("//")
    if "/" not in text and "\\" not in text:
        return False
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = {_without(key): _without(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if key is not _LEFT_OUT and item is not _LEFT_OUT}
    if isinstance(value, list | tuple | set | frozenset):
        return [item for item in map(_without, value) if item is not _LEFT_OUT]
    if isinstance(value, os.PathLike):
        return _LEFT_OUT
    if isinstance(value, str):
        return _LEFT_OUT if is_local_path(value) else _WITHIN.sub("…", value)
    return value
