"""The methods of a cell from its words: each combination of configs is parsed once, values of axes are set in it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ...datamodules.few_shot import FewShotDataModule
from ...errors import DtrapError
from ..configuration import MethodConfig, build_data
from ..identity import identity, owner_of
from ..method_names import PRECISIONS, effective_settings
from .cells import Cell

# Parses the words of a cell, and then those of an arm, which replace them.
Parse = Callable[[Sequence[str], Sequence[str]], MethodConfig]
Place = tuple[str, ...]
PLAIN = (str, bool, int, float, type(None))


@dataclass(frozen=True)
class Arm:
    """An arm of a cell: a parsed method, and values that are set in it.

    Attributes:
        name: Name of the arm.
        method: The parsed method, shared with other cells.
        changes: Values by the keys under which they stand in the config.
    """

    name: str
    method: MethodConfig
    changes: tuple[tuple[Place, Any], ...]

    def values(self) -> dict[str, Any]:
        """Return the config with the changes; what is not changed is shared."""
        values = dict(self.method.values)
        for place, value in self.changes:
            here = values
            for key in place[:-1]:
                here[key] = dict(here[key])
                here = here[key]
            here[place[-1]] = value
        return values


@dataclass(frozen=True)
class ResolvedCell:
    """A cell with its methods.

    Attributes:
        cell: The cell.
        arms: Its methods, the main one first.
        title: Title of its data set.
        unit: What a task is counted as.
        episodes: Number of episodes that the data have of those asked for.
        data_key: Identifies the episodes.
        arm_keys: Identify what each arm trains, on any data.
        key: Identifies the cell: cells of one key are the same run.
        backbone: Settings of the backbone as text.
    """

    cell: Cell
    arms: tuple[Arm, ...]
    title: str
    unit: str
    episodes: int
    data_key: str
    arm_keys: tuple[str, ...]
    key: str
    backbone: str


class Resolver:
    """Resolves cells; what they share is computed once.

    Args:
        parse: Parses command line words.
        sets: Returns the dotted options that command line words set, in their configs too.
    """

    def __init__(self, parse: Parse, sets: Callable[[Sequence[str]], set[str]]) -> None:
        self.parse, self.sets = parse, cache(sets)
        self._parsed: dict[tuple[tuple[str, ...], tuple[str, ...]], MethodConfig] = {}
        self._typed: dict[Any, Any] = {}
        self._keys: dict[Any, str] = {}
        self._data: dict[str, tuple[str, str, int | None]] = {}

    def resolve(self, cell: Cell) -> ResolvedCell:
        """Return a cell with its methods.

        Raises:
            DtrapError: A config or a value is not as expected, or an arm changes the data; names the cell.
        """
        try:
            return self._resolve(cell)
        except DtrapError as error:
            raise DtrapError(f"{cell.title}: {error}") from error

    def _resolve(self, cell: Cell) -> ResolvedCell:
        arms = tuple(self._arm(cell, arm.name, arm.words) for arm in cell.arms)
        main, data_key = arms[0], self._data_key(arms[0])
        for arm in arms[1:]:
            if self._data_key(arm) != data_key:
                raise DtrapError(
                    f"the arm '{arm.name}' changes the data, but arms are compared on the same episodes. Leave `data` "
                    "out of its overlays and options; use an axis or a grid instead."
                )
        title, unit, tasks = self._describe(main)
        episodes = cell.episodes or main.method.values["protocol"]["episodes"]
        whole = [self._key(arm, ("trainer", "model", "stage_switch"), effective=False) for arm in arms]
        names = [arm.name for arm in arms]
        return ResolvedCell(
            cell,
            arms,
            title,
            unit,
            min(episodes, tasks or episodes),
            data_key,
            tuple(self._key(arm, ("trainer", "model", "stage_switch"), effective=True) for arm in arms),
            _digest([data_key, names, whole]),
            json.dumps(main.values()["model"]["backbone"], sort_keys=True, default=str),
        )

    def _arm(self, cell: Cell, name: str, words: tuple[str, ...]) -> Arm:
        given = [
            _for_all_way(option, value, self._parse(cell.words, ()).values) for option, value in cell.values.items()
        ]
        own = self.sets(words)
        parsed: dict[str, Any] = {}  # values that only the parser can set
        while True:
            start = (*cell.words, *(word for item in parsed.items() for word in (f"--{item[0]}", _word(item[1]))))
            base, method = self._parse(start, ()), self._parse(start, words)
            changes: list[tuple[Place, Any]] = []
            for option, value in given:
                if option in parsed or option in own:  # an arm goes before the axes
                    continue
                change = self._change(base, method, option, value, own)
                if change is None:
                    parsed[option] = value
                    break
                changes.append(change)
            else:
                return Arm(name, method, tuple(changes))

    def _parse(self, words: tuple[str, ...], arm: tuple[str, ...]) -> MethodConfig:
        key = (words, arm)
        if key not in self._parsed:
            method = self.parse(words, arm)
            precision = str(method.values["trainer"].get("precision"))
            # The precision that Lightning would choose, so that it stands in the folder.
            settled = "32-true" if precision == "None" else PRECISIONS.get(precision, precision)
            method.values["trainer"]["precision"] = method.parsed.trainer.precision = settled
            self._parsed[key] = method
        return self._parsed[key]

    def _change(
        self, base: MethodConfig, method: MethodConfig, option: str, value: Any, own: Container[str]
    ) -> tuple[Place, Any] | None:
        """Return where a value is set in a method, and the value; None where only the parser can set it."""
        place = _place(method.values, option)
        if place is None or _place(base.values, option) != place or not isinstance(_at(method.values, place), PLAIN):
            return None
        parts = option.split(".")
        if any(".".join(parts[:end]) in own for end in range(1, len(parts))):
            return None
        for end in range(1, len(place)):  # another class may take another value
            path = (*place[:end], "class_path")
            if _at(method.values, path) != _at(base.values, path):
                return None
        typed = self._convert(method.values, place, value)
        return None if typed is _UNKNOWN else (place, typed)

    def _convert(self, values: dict[str, Any], place: Place, value: Any) -> Any:
        """Return a value as the type of its option has it; `_UNKNOWN` if only the parser can say."""
        owner, annotation = owner_of(values, place)
        key = (owner, place, repr(value))
        if key not in self._typed:
            self._typed[key] = _UNKNOWN
            if annotation is not None:
                parser = ArgumentParser(exit_on_error=False)
                try:
                    parser.add_argument("--value", type=annotation)
                    found = parser.parse_object({"value": value}).value
                except (ArgumentError, TypeError, ValueError):
                    found = _UNKNOWN
                if isinstance(found, PLAIN):
                    self._typed[key] = found
        return self._typed[key]

    def _data_key(self, arm: Arm) -> str:
        return self._key(arm, ("data",), effective=False)

    def _key(self, arm: Arm, sections: tuple[str, ...], *, effective: bool) -> str:
        changes = tuple((place, value) for place, value in arm.changes if place[0] in sections)
        key = (id(arm.method), sections, effective, repr(changes))
        if key not in self._keys:
            values = Arm(arm.name, arm.method, changes).values()
            if effective:
                tuner = _with(arm, changes).own_tuner
                found = effective_settings(values, tuner)
            else:
                found = identity({name: values.get(name, {}) for name in sections})
            if sections == ("data",):  # cells on other images are other cells
                found = {**found, "root": _root(values)}
            self._keys[key] = _digest(found)
        return self._keys[key]

    def _describe(self, arm: Arm) -> tuple[str, str, int | None]:
        """Return title, unit and number of tasks of the data, which do not depend on seed and episode."""
        changes = tuple((place, value) for place, value in arm.changes if place[0] == "data" and place[-1] != "seed")
        key = f"{id(arm.method)} {changes!r}"
        if key not in self._data:
            data: FewShotDataModule = build_data(_with(arm, changes).parsed)
            self._data[key] = data.title, data.unit, data.tasks
        return self._data[key]


_UNKNOWN = object()


def _root(values: dict[str, Any]) -> Any:
    return values["data"].get("init_args", {}).get("root")


def _for_all_way(option: str, value: Any, values: dict[str, Any]) -> tuple[str, Any]:
    """The option of a seed: the all-way protocol has a list of them."""
    if option == "data.seed" and values["data"].get("init_args", {}).get("all_way") is not None:
        return "data.all_way.seeds", [value]
    return option, value


def _place(values: dict[str, Any], option: str) -> Place | None:
    """Return the keys under which a config holds an option; None if it has none of that name."""
    keys: list[str] = []
    here: Any = values
    for part in option.split("."):
        if isinstance(here, dict) and "class_path" in here and part != "init_args":
            keys.append("init_args")
            here = here.get("init_args")
        if not isinstance(here, dict) or part not in here:
            return None
        keys.append(part)
        here = here[part]
    return tuple(keys)


def _at(values: Any, place: Place) -> Any:
    for key in place:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _with(arm: Arm, changes: Sequence[tuple[Place, Any]]) -> MethodConfig:
    """Return a method of its own with changes."""
    parsed: Namespace = arm.method.parsed.clone()
    for place, value in changes:
        parsed[".".join(place)] = value
    return MethodConfig(arm.name, parsed, Arm(arm.name, arm.method, tuple(changes)).values())


def methods_of(resolved: ResolvedCell, folder: str, episodes: int) -> list[MethodConfig]:
    """Return the methods of a cell for a run into a folder."""
    return [_for_run(arm, folder, episodes) for arm in resolved.arms]


def _for_run(arm: Arm, folder: str, episodes: int) -> MethodConfig:
    method = _with(arm, arm.changes)
    given = {"method": arm.name, "episodes": episodes, "folder": folder, "compare": None, "overwrite": False}
    method.values = copy.deepcopy(method.values)  # a run writes into it
    method.values["protocol"] |= given
    for name, value in given.items():
        method.parsed.protocol[name] = value
    return replace(method, explicit=True)
