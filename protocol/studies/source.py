"""Where the values of a study file stand: errors that name the place, and configs that are found next to the file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...configs import SHIPPED, find_config
from ...errors import DtrapError, expected_one_of

# What a study decides for each of its runs.
DECIDED = ("protocol.folder", "protocol.compare", "protocol.method", "protocol.overwrite", "data.episode")
MOST_VALUES = 10_000


class Source:
    """The file that a value stands in, for messages and for the configs next to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, key: str, value: object, expected: str) -> DtrapError:
        """Return the error for a value that is not as expected."""
        return DtrapError(f"{self.path}: {key}: found {shown(value)}; expected {expected}.")

    def check_keys(self, content: Mapping[Any, Any], known: Sequence[str], where: str = "") -> None:
        """Raise a DtrapError for an unknown key."""
        for key in content:
            if key not in known:
                raise DtrapError(f"{self.path}: unknown key '{where}{key}'; {expected_one_of(key, known)}")

    def beside(self, name: str) -> Path | None:
        """Return the file of this name next to the study file, where the current folder has none."""
        if self.path.parent == SHIPPED / "studies":  # demo.yaml is a study there, and a config in the folder above
            return None
        found = self.path.parent / name
        return found if not Path(name).is_file() and found.is_file() else None

    def config(self, key: str, name: str) -> str:
        """Return the config's name as the command line takes it.

        Raises:
            DtrapError: There is no such config.
        """
        beside = self.beside(name)
        if beside is not None:
            return str(beside)
        try:
            find_config(name)
        except DtrapError as error:
            raise DtrapError(f"{self.path}: {key}: {error}") from error
        return name

    def words(self, key: str, items: Any, expected: str) -> tuple[str, ...]:
        """Return command line words from a config's name, or a list of configs and options."""
        if isinstance(items, str):
            items = [items]
        if not isinstance(items, list):
            raise self.error(key, items, expected)
        words: list[str] = []
        option = ""  # that waits for its value
        for item in items:
            if isinstance(item, bool | int | float) and option:
                words.append(str(item).lower() if isinstance(item, bool) else repr(item))
                option = ""
            elif not isinstance(item, str) or not item.strip():
                raise self.error(key, item, expected)
            elif option:
                words.append(self.config(key, item) if option == "--config" else item)
                option = ""
            elif item.startswith("-"):
                name, *value = re.split(r"\s*=|\s+", item, maxsplit=1)
                self._check_option(key, name)
                if name == "--config" and value:
                    words += [name, self.config(key, value[0])]
                else:  # as it is typed: `--trainer.callbacks+=X` is one word
                    words += [item] if "=" in item and value else [name, *value]
                option = "" if value else name
            else:
                words += ["--config", self.config(key, item)]
        if option:
            raise self.error(key, option, "a value after the option")
        return tuple(words)

    def _check_option(self, key: str, option: str) -> None:
        name = option.lstrip("-").rstrip("+")
        if name in DECIDED or not option.startswith("--") or name == "print_config":
            raise DtrapError(
                f"{self.path}: {key}: {option} cannot be given in a study, which decides it. Leave it out."
            )

    def check_distinct(self, key: str, values: Sequence[Any]) -> None:
        """Raise a DtrapError if a value is given twice, or there are too many."""
        if len(values) > MOST_VALUES:
            raise DtrapError(f"{self.path}: {key}: {len(values):,} values; expected at most {MOST_VALUES:,}.")
        seen: set[str] = set()
        for value in values:
            text = repr(value)
            if text in seen:
                raise DtrapError(f"{self.path}: {key}: {shown(value)} is given twice. Leave one out.")
            seen.add(text)


def shown(value: object) -> str:
    """Return a value as a message shows it, cut where it is long."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
