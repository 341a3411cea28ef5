"""Paths in saved configs and cards: absolute, since a command may be started in another folder."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

# Options that are folders or files whether they exist or not, and those that may be a name instead.
_PATHS = {"data": ("root", "query_root", "subset", "table"), "protocol": ("folder",)}
_PERHAPS = {"backbone": ("name", "pretrained", "tokenizer", "cache_dir")}


def with_absolute_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Return a config's values with absolute paths of data, backbone files and run folder.

    A backbone's name or weights are a path where there is such a file or folder here, else a published name. A root of
    the embedded data set is not a path.
    """
    values = copy.deepcopy(values)
    for section, names in _PATHS.items():
        for options in _options(values.get(section)):
            _make_absolute(options, names)
    for options in _options((values.get("model") or {}).get("backbone")):
        for name in _PERHAPS["backbone"]:
            given = options.get(name)
            if not isinstance(given, str):
                continue
            path = given.removeprefix("local-dir:")  # open_clip's prefix of a folder, which is known without it, too
            if Path(path).expanduser().exists():
                options[name] = path
                _make_absolute(options, (name,))
    return values


def same_path(first: object, second: object) -> bool:
    """Return whether two texts are the same path from the current folder."""
    if not (isinstance(first, str) and isinstance(second, str)):
        return False
    return os.path.abspath(os.path.expanduser(first)) == os.path.abspath(os.path.expanduser(second))


def _options(part: Any) -> list[dict[str, Any]]:
    """Return the mappings that may hold a part's options: its arguments, or those of a section itself."""
    found = [part, part.get("init_args")] if isinstance(part, dict) else []
    return [options for options in found if isinstance(options, dict)]


def _make_absolute(options: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if isinstance(options.get(name), str):
            options[name] = os.path.abspath(os.path.expanduser(options[name]))
