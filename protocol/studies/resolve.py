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
from ..method_names import effective_settings
from ..precision import canonical
from ..run_folder import ELSEWHERE
from .cells import Cell

# Parses the words of a cell, and then those of an arm, which replace them.
Parse = Callable[[Sequence[str], Sequence[str]], MethodConfig]
Keys = tuple[str, ...]
TRAINING = ("trainer", "model", "stage_switch")
SEED = ("data", "init_args", "seed")
PLAIN = (str, bool, int, float, type(None))


@dataclass(frozen=True)
class Arm:
    """An arm of a cell: a parsed method, and values that are set in it.

    Attributes:
        name: Name of its method: the arm's, marked where the method sees the queries.
        method: The parsed method, shared with other cells.
        changes: Values by the keys under which they stand in the config.
    """

    name: str
    method: MethodConfig
    changes: tuple[tuple[Keys, Any], ...]

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
        costs: Identify what an episode of each arm takes: one of other images, seeds and losses takes as long.
        extras: Identify what else each arm measures and writes; "" for nothing.
        computes_all: Whether a callback may take an arm's training from another arm's rows, so that none are copied.
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
    costs: tuple[str, ...]
    extras: tuple[str, ...]
    computes_all: bool
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
        self._types: dict[Any, Any] = {}
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
            if arm.values()["data"] != main.values()["data"]:
                raise DtrapError(
                    f"the arm '{arm.name}' changes the data, but arms are compared on the same episodes. Leave `data` "
                    "out of its overlays and options; use an axis or a grid instead."
                )
        title, unit, tasks = self._describe(main)
        episodes = cell.episodes or main.method.values["protocol"]["episodes"]
        whole = [self._key(arm, TRAINING, _identity) for arm in arms]
        names = [arm.name for arm in arms]
        return ResolvedCell(
            cell,
            arms,
            title,
            unit,
            min(episodes, tasks or episodes),
            data_key,
            tuple(self._key(arm, TRAINING, _effective) for arm in arms),
            tuple(self._key(arm, (*TRAINING, "data"), _cost) for arm in arms),
            tuple(self._key(arm, ("trainer", "protocol"), _extras) for arm in arms),
            any(self._key(arm, ("trainer",), _callbacks) for arm in arms),
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
            changes: list[tuple[Keys, Any]] = []
            for option, value in given:
                if option in parsed or option in own:  # an arm goes before the axes
                    continue
                change = self._change(base, method, option, value, own)
                if change is None:
                    parsed[option] = value
                    break
                changes.append(change)
            else:
                return Arm(self._marked(name, method, changes), method, tuple(changes))

    def _marked(self, name: str, method: MethodConfig, changes: Sequence[tuple[Keys, Any]]) -> str:
        """Mark the name of a method that sees the queries, whose results are not comparable with others."""
        key = (id(method), "transductive", tuple(place for place, _ in changes if place[:2] == ("model", "tuner")))
        if key not in self._keys:
            self._keys[key] = "-transductive" if method.own_tuner.transductive else ""
        return name if "transductive" in name else name + self._keys[key]

    def _parse(self, words: tuple[str, ...], arm: tuple[str, ...]) -> MethodConfig:
        key = (words, arm)
        if key not in self._parsed:
            method = self.parse(words, arm)
            # A plan does not depend on the device: null stays, and a run settles it.
            if (given := method.values["trainer"].get("precision")) is not None:
                method.set_precision(canonical(given))
            self._parsed[key] = method
        return self._parsed[key]

    def _change(
        self, base: MethodConfig, method: MethodConfig, option: str, value: Any, own: Container[str]
    ) -> tuple[Keys, Any] | None:
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

    def _convert(self, values: dict[str, Any], place: Keys, value: Any) -> Any:
        """Return a value as the type of its option has it; `_UNKNOWN` if only the parser can say."""
        classes = tuple(_at(values, (*place[:end], "class_path")) for end in range(1, len(place)))
        if (classes, place) not in self._types:
            self._types[classes, place] = owner_of(values, place)[1]
        annotation = self._types[classes, place]
        if annotation in (int, str) and type(value) is annotation:
            return value
        key = (classes, place, repr(value))
        if key not in self._typed:
            self._typed[key] = _parsed_as(annotation, value)
        return self._typed[key]

    def _data_key(self, arm: Arm) -> str:
        return self._key(arm, ("data",), _data)

    def _key(self, arm: Arm, sections: tuple[str, ...], of: Callable[[Arm], Any]) -> str:
        """Return a digest of what `of` returns for an arm, computed once for equal settings in these sections."""
        # An episode takes as long for another seed.
        seed = SEED if of is _cost else None
        changes = tuple((place, value) for place, value in arm.changes if place[0] in sections and place != seed)
        key = (id(arm.method), of, repr(changes))
        if key not in self._keys:
            found = of(Arm(arm.name, arm.method, changes))
            self._keys[key] = _digest(found) if found else ""
        return self._keys[key]

    def _describe(self, arm: Arm) -> tuple[str, str, int | None]:
        """Return title, unit and number of tasks of the data, which do not depend on seed and episode."""
        changes = tuple((place, value) for place, value in arm.changes if place[0] == "data" and place != SEED)
        key = f"{id(arm.method)} {changes!r}"
        if key not in self._data:
            data: FewShotDataModule = build_data(_with(arm, changes).parsed)
            self._data[key] = data.title, data.unit, data.tasks
        return self._data[key]


_UNKNOWN = object()


def _parsed_as(annotation: Any, value: Any) -> Any:
    """Return a value as the parser reads it for a type, if it is plain; otherwise `_UNKNOWN`."""
    if annotation is None:
        return _UNKNOWN
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=annotation)
        found = parser.parse_object({"value": value}).value
    except (ArgumentError, TypeError, ValueError):
        return _UNKNOWN
    return found if isinstance(found, PLAIN) else _UNKNOWN


def _identity(arm: Arm) -> Any:
    values = arm.values()
    return identity({name: values.get(name, {}) for name in TRAINING})


def _effective(arm: Arm) -> Any:
    return effective_settings(arm.values(), _with(arm, arm.changes).own_tuner)


def _data(arm: Arm) -> Any:
    values = arm.values()
    # Cells on other images are other cells.
    return {**identity({"data": values["data"]}), "root": values["data"].get("init_args", {}).get("root")}


def _cost(arm: Arm) -> Any:
    values = identity(arm.values())
    model, data = values["model"], values["data"].get("init_args", {})
    for name in ("objective", "learning_rate", "final_rate", "start_seed", "template"):
        model.get("init_args", model).pop(name, None)
    values["trainer"].pop("callbacks", None)
    sizes = {name: data.get(name) for name in ("way", "shot", "query", "views", "batch_size")}
    return [values["trainer"], model, sizes, data.get("all_way") and arm.values()["data"]]


def _extras(arm: Arm) -> Any:
    values = arm.values()
    written = {name: value for name, value in values["protocol"].items() if name.startswith(("save_", "pictures"))}
    found = {"callbacks": values["trainer"].get("callbacks"), **written}
    return {name: value for name, value in found.items() if value}


def _callbacks(arm: Arm) -> Any:
    return identity(arm.values())["trainer"].get("callbacks")


def folders_of(cells: Sequence[ResolvedCell]) -> dict[str, str]:
    """Return the folder of each cell by its title: that of the first cell that is the same run."""
    first: dict[str, str] = {}
    return {found.cell.title: first.setdefault(found.key, found.cell.folder) for found in cells}


# A method in a folder of the study.
Place = tuple[str, str]


class Sources:
    """Which rows a cell can take over: those of a method that trains the same on the same episodes.

    Args:
        cells: All cells of the study.
    """

    def __init__(self, cells: Sequence[ResolvedCell]) -> None:
        self.folders = folders_of(cells)
        self._places: dict[tuple[str, str], dict[Place, str]] = {}
        for found in cells:
            for arm, key, extras in zip(found.arms, found.arm_keys, found.extras, strict=True):
                places = self._places.setdefault((found.data_key, key), {})
                places.setdefault((self.folders[found.cell.title], arm.name), extras)

    def of(self, found: ResolvedCell, number: int) -> list[Place]:
        """Return folders and names of the methods whose rows are those of an arm, in the order of the study."""
        here = self.folders[found.cell.title]
        if found.computes_all:
            return []
        places = self._places[found.data_key, found.arm_keys[number]]
        wanted = found.extras[number]
        return [place for place, extras in places.items() if place[0] != here and wanted in ("", extras)]


def _for_all_way(option: str, value: Any, values: dict[str, Any]) -> tuple[str, Any]:
    """The option of a seed: the all-way protocol has a list of them."""
    if option == "data.seed" and values["data"].get("init_args", {}).get("all_way") is not None:
        return "data.all_way.seeds", [value]
    return option, value


def _place(values: dict[str, Any], option: str) -> Keys | None:
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


def _at(values: Any, place: Keys) -> Any:
    for key in place:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _with(arm: Arm, changes: Sequence[tuple[Keys, Any]]) -> MethodConfig:
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


def as_in_study(message: str) -> str:
    """Return an error of a run with the options that a study has, and the first difference in the first line."""
    if ELSEWHERE in message:
        message = message.replace(ELSEWHERE, "Delete that folder, or choose another one for the study with --folder.")
        message = message.replace(":\n  ", ": ", 1)
    return message.replace("--data.root", "--data-root")
