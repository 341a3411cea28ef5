"""The command lines of a study's cells: one parser for all, since making it takes longer than its use."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from .. import datamodules
from ..configs import SHIPPED, find_config
from ..errors import DtrapError, as_typed
from ..parsing import read_yaml
from ..protocol.configuration import MethodConfig
from .given_configs import CONFIG_OPTIONS, find_configs
from .parser import DtrapCLI, method_of


class StudyParser:
    """Parses the command lines of the cells of a study.

    Args:
        data_root: Folder under which each data set has its own; None if no set needs one.
        anywhere: Whether a set that needs a folder gets one that need not exist, so that its config can be read.
    """

    def __init__(self, data_root: str | None, *, anywhere: bool = False) -> None:
        self.data_root, self.anywhere = data_root, anywhere
        self._cli: DtrapCLI | None = None

    def __call__(self, words: Sequence[str], arm: Sequence[str]) -> MethodConfig:
        """Return the method of a cell.

        Args:
            words: The words of the cell.
            arm: Those of the arm, which replace them.

        Raises:
            DtrapError: A mistake in a config or an option.
        """
        if self._cli is None:
            self._cli = DtrapCLI(["--config", "demo.yaml"], "fit")
        start = ["--config", str(SHIPPED / "defaults.yaml")]
        # The arm on its own: what it replaces is meant to have no effect.
        given = [*start, *find_configs([*words, *self._root(words)]), *find_configs(list(arm))]
        self._cli.parse_arguments(self._cli.parser, given)
        return method_of(self._cli)

    def _root(self, words: Sequence[str]) -> list[str]:
        """Return the option for the folder of a set that needs one and has none."""
        given = options_set(words)
        if "data.root" in given or not _needs_root(_data_class(words)):
            return []
        if self.data_root is None and not self.anywhere:
            name = next((word for option, word in pairwise(words) if option in CONFIG_OPTIONS), "the set")
            raise DtrapError(
                f"{name} needs a folder of images. Give --data-root FOLDER, under which each set has its own."
            )
        return ["--data.root", self.data_root or "data"]


def options_set(words: Sequence[str]) -> set[str]:
    """Return the dotted options that command line words set, those in their configs included."""
    found: set[str] = set()
    for option, word in pairwise([*words, ""]):
        if option in CONFIG_OPTIONS:
            found |= set(_dotted(_content(word), ""))
        elif option.startswith("--"):
            found.add(as_typed(option[2:].partition("=")[0].rstrip("+"))[2:])
    return found


def _dotted(values: dict[str, Any], start: str) -> Iterator[str]:
    for key, value in values.items():
        if key == "class_path":
            continue
        name = start if key == "init_args" else f"{start}.{key}".lstrip(".")
        if isinstance(value, dict):
            yield from _dotted(value, name)
        else:
            yield name


@cache
def _content(config: str) -> dict[str, Any]:
    with suppress(OSError, ValueError):  # the parser names the fault
        content = read_yaml(Path(find_config(config)))
        return content if isinstance(content, dict) else {}
    return {}


def _data_class(words: Sequence[str]) -> str:
    """Return the class path of the data that the last config with one chooses."""
    chosen = ""
    for option, word in pairwise(words):
        data = _content(word).get("data") if option in CONFIG_OPTIONS else word if option == "--data" else None
        path = data.get("class_path") if isinstance(data, dict) else data
        chosen = path if isinstance(path, str) else chosen
    return chosen


@cache
def _needs_root(class_path: str) -> bool:
    try:
        kind = resolve_name(class_path) if "." in class_path else getattr(datamodules, class_path)
        root = inspect.signature(kind.__init__).parameters.get("root")
    except (ImportError, AttributeError, ValueError, TypeError):
        return False  # the parser names the fault
    return root is not None and root.default is root.empty
