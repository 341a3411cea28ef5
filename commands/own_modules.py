"""Modules of a user's own: next to a config that was given, or in the current folder; and why one was not imported.

A folder comes to the end of Python's path, after the installed packages, and only if a given config or an option names
a module that is there and nowhere else. A config that was found, such as that of a run next to an adapter, adds none.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import first_line

_DOTTED = re.compile(r"([^\W\d]\w*)(?:\.[^\W\d]\w*)+")
_WITHIN = re.compile(r"class_path['\"]?\s*:\s*['\"]?([\w.]+)")  # of a value such as '{class_path: mine.Tuner}'
_added: list[str] = []  # to the path, by this command
_looked: list[str] = []  # where modules were looked for, after the installed packages


def begin() -> None:
    """Take back what an earlier command of this process has added: its modules may have the names of others."""
    for name, module in list(sys.modules.items()):
        if _folder_of(module) in _added:
            del sys.modules[name]
    sys.path[:] = [folder for folder in sys.path if folder not in _added]
    _added.clear()
    _looked.clear()


def make_importable(named: Iterable[str], folders: Iterable[str | Path] = ()) -> None:
    """Append to the path the folders of the modules that texts name and that are not installed.

    Args:
        named: Values of given configs and options; those of the form `module.Class` count.
        folders: Folders of the given configs. The current folder comes last.
    """
    places = list(dict.fromkeys(os.path.abspath(folder) for folder in (*folders, os.getcwd())))
    _looked[:] = dict.fromkeys([*_looked, *places])
    paths = [path for text in named for path in (text, *_WITHIN.findall(text))]
    for top in dict.fromkeys(match.group(1) for path in paths if (match := _DOTTED.fullmatch(path))):
        place = next((place for place in places if _holds(place, top)), None)
        if place is not None and place not in sys.path and not _is_known(top):
            sys.path.append(place)
            _added.append(place)
            importlib.invalidate_caches()


def texts_in(value: Any) -> Iterator[str]:
    """Yield all texts in the values of a config."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)


def import_fault(class_path: str) -> str | None:
    """Return why the module of a given class path cannot be imported, and where it was looked for; None if it can.

    Args:
        class_path: `module.Class`.
    """
    module = class_path.rpartition(".")[0]
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            return _failed(module, error)
        looked = ", ".join(["the installed packages", *_looked])
        return (
            f"there is no module {error.name}; looked in {looked}. Put {error.name.replace('.', '/')}.py next to the "
            "config that you give with --config, or run the command in its folder."
        )
    except Exception as error:  # whatever somebody's module raises
        return _failed(module, error)
    return None


def hidden_file(module: str) -> str:
    """Return a sentence on a file that an imported module of the same name hides; an empty text if there is none."""
    own = getattr(sys.modules.get(module), "__file__", None)
    top = module.partition(".")[0]
    place = next((place for place in _looked if _holds(place, top)), None)
    if own is None or place is None or Path(own).is_relative_to(place):
        return ""
    return f" {Path(place, top)}.py is hidden by the installed {own}; rename it."


def _failed(module: str, error: Exception) -> str:
    # The innermost line that is the user's; of a syntax error the message has it.
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if os.path.dirname(frame.filename) in _looked
    ]
    where = f" in line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"importing {module} failed{where} ({reason}). Correct it, or install what it needs."


def _is_known(top: str) -> bool:
    try:
        return top in sys.modules or find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _holds(folder: str, top: str) -> bool:
    path = Path(folder, top)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _folder_of(module: Any) -> str | None:
    """Return the folder on the path that a module, or the package around it, comes from."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return None
    depth = str(getattr(module, "__name__", "")).count(".") + (os.path.basename(file) == "__init__.py")
    return os.path.abspath(Path(file).parents[depth]) if depth < len(Path(file).parents) else None
