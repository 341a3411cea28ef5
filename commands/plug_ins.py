"""Classes that installed packages offer by an entry point: found by name, and imported when they are used."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from pkgutil import resolve_name
from typing import Any

from ..errors import DtrapError, first_line

# Of each group of entry points the option that takes such a class, and what the class is.
GROUPS = {
    "dtrap.tuners": ("model.tuner", "tuner"),
    "dtrap.datamodules": ("data", "data module"),
    "dtrap.backbones": ("model.backbone", "backbone"),
    "dtrap.callbacks": ("trainer.callbacks", "callback"),
}
_GROUP_OF = {option.rpartition(".")[2]: group for group, (option, _) in GROUPS.items()}
# Names that are taken: an installed package cannot change what a config means.
_TAKEN = {
    "dtrap.tuners": ("dtrap.lightning_modules.tuners",),
    "dtrap.datamodules": ("dtrap.datamodules", "dtrap.datamodules.coop"),
    "dtrap.backbones": ("dtrap.lightning_modules.backbones",),
    "dtrap.callbacks": ("dtrap.callbacks", "lightning.pytorch.callbacks"),
}


@dataclass(frozen=True)
class PlugIn:
    """An entry point.

    Attributes:
        name: Its name.
        group: Its group.
        class_path: Module and class, joined by a dot.
        package: Name and version of the package that has it.
    """

    name: str
    group: str
    class_path: str
    package: str

    @property
    def names(self) -> tuple[str, str]:
        """What a config may call it: its name, or that of its class."""
        return self.name, self.class_path.rpartition(".")[2]

    def load(self) -> Any:
        """Import the class; None with a warning if that fails."""
        found, fault = self._resolved()
        if fault is not None:
            warnings.warn(fault, stacklevel=2)
        return found

    @property
    def fault(self) -> str | None:
        """Why it cannot be imported; None if it can."""
        return self._resolved()[1]

    def _resolved(self) -> tuple[Any, str | None]:
        try:
            return resolve_name(self.class_path), None
        except Exception as error:  # whatever somebody's module raises
            reason = f"{type(error).__name__}: {first_line(error)}"
            return None, (
                f"the plug-in {self.name} of {self.package} cannot be imported ({reason}). Update or uninstall "
                f"{self.package.split()[0]}."
            )


def plug_ins() -> list[PlugIn]:
    """Return the installed plug-ins, sorted by option and name; none of them is imported."""
    return _plug_ins(tuple(sys.path))


@cache
def _plug_ins(path: tuple[str, ...]) -> list[PlugIn]:
    found = []
    for group in GROUPS:
        for entry in importlib.metadata.entry_points(group=group):
            package = "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
            module, _, name = entry.value.partition("[")[0].replace(" ", "").partition(":")
            if not module or not name:
                warnings.warn(
                    f"the plug-in {entry.name} of {package} is left out: its entry point is {entry.value!r}; expected "
                    "module:Class.",
                    stacklevel=2,
                )
                continue
            found.append(PlugIn(entry.name, group, f"{module}.{name}", package))
    return list(dict.fromkeys(found))


def plug_in_lines() -> list[str]:
    """Return a line on each plug-in: how it is chosen, and where it comes from."""
    chosen = [(f"--{GROUPS[each.group][0]} {each.name}", each) for each in plug_ins()]
    width = max((len(option) for option, _ in chosen), default=0) + 2
    return [f"{option:{width}}{GROUPS[each.group][1]} {each.class_path} of {each.package}" for option, each in chosen]


def load_plug_ins() -> None:
    """Import all of them, for a list of classes."""
    for each in plug_ins():
        each.load()


def full_path(name: Any, group: str | None = None) -> Any:
    """Return the class path of a plug-in that a config calls by a short name; anything else as it is.

    Args:
        name: A value of a config.
        group: Group of entry points that the value is for; None for any.

    Raises:
        DtrapError: Several packages have a plug-in of that name.
    """
    if not isinstance(name, str) or not name or "." in name or "/" in name:
        return name
    found = [each for each in plug_ins() if name in each.names and group in (None, each.group)]
    found = [each for each in found if not _is_taken(name, each.group)]
    paths = list(dict.fromkeys(each.class_path for each in found))
    if len(paths) > 1:
        offered = " and ".join(f"{each.class_path} of {each.package}" for each in found)
        raise DtrapError(f"'{name}' is the name of several plug-ins: {offered}. Give the class path of one of them.")
    return paths[0] if paths else name


def _is_taken(name: str, group: str) -> bool:
    return any(name in dir(import_module(package)) for package in _TAKEN[group])


def words_in_full(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with the class paths of plug-ins in place of their short names."""
    if not plug_ins():
        return list(words)
    full = []
    for before, word in pairwise(["", *words]):
        option, equals, value = word.partition("=")
        if equals and option.startswith("--"):
            full.append(f"{option}={full_path(value, _group(option)) if _group(option) else value}")
        else:
            group = _group(before)
            full.append(full_path(word, group) if group else word)
    return full


def _group(option: str) -> str | None:
    """Return the group of an option such as `--model.tuner`, `--model.tuner.class_path` or `--trainer.callbacks+`."""
    known = {f"--{option}": group for group, (option, _) in GROUPS.items()}
    return known.get(option.rstrip("+").removesuffix(".class_path"))


def values_in_full(value: Any, group: str | None = None) -> Any:
    """Return values of a config with the class paths of plug-ins in place of their short names.

    Args:
        value: A config, or a part of it.
        group: Group of entry points that the value is for; None if it is none of them.
    """
    if not plug_ins():
        return value
    if isinstance(value, Mapping):
        return {
            key: full_path(item, group) if key == "class_path" else values_in_full(item, _GROUP_OF.get(str(key)))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [values_in_full(item, group) for item in value]
    return value if group is None else full_path(value, group)
