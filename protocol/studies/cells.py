"""The cells of a study: the product of its axes, and the names of their folders."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from ...errors import DtrapError
from ..identity import name_part
from .file import SETS_OF_CONFIGS, Choice, Part, Study
from .published import PAPER_ARMS, is_papers, keeps_setting

MOST_CELLS = 100_000
NAME_BYTES = 150  # of a folder
# Episodes of a cell whose number of shots is given by an axis, as the authors have them.
EPISODES_OF_ONE_SHOT, EPISODES = 800, 400


@dataclass(frozen=True)
class Cell:
    """One run of a study: a data set, its settings, and the methods that are compared on its episodes.

    Attributes:
        part: Name of its part.
        name: Its own name, unlike those of the other cells of the part.
        folder: Its folder, relative to the study's.
        axes: Value of each axis.
        words: Command line words of set, backbone, tuner and options.
        values: Values of options that axes give: "data.shot", "data.seed" and those of the grid.
        arms: The methods, the main one first.
        episodes: Number of episodes; None for that of the config.
        as_published: Names of the arms that published numbers may stand next to: nothing else is set than in the paper.
    """

    part: str
    name: str
    folder: str
    axes: dict[str, Any]
    words: tuple[str, ...]
    values: dict[str, Any]
    arms: tuple[Choice, ...]
    episodes: int | None
    as_published: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Part and name, as `--only` takes them."""
        return f"{self.part}/{self.name}"


def cells_of(study: Study, options: Sequence[str] = (), episodes: int | None = None) -> list[Cell]:
    """Return all cells in the order of the parts, the first axis changing slowest.

    Args:
        study: The study.
        options: Further command line words for all cells.
        episodes: Number of episodes of all cells instead of the file's.

    Raises:
        DtrapError: There are too many.
    """
    number = sum(prod(map(len, part.axes.values())) for part in study.parts)
    if number > MOST_CELLS:
        raise DtrapError(f"{study.path}: {number:,} cells; expected at most {MOST_CELLS:,}. Shorten an axis.")
    several = len(study.parts) > 1 or study.parts[0].name != study.name
    return [
        cell
        for part in study.parts
        for cell in _cells(part, f"{name_part(part.name)}/" if several else "", tuple(options), episodes)
    ]


def _cells(part: Part, prefix: str, options: tuple[str, ...], episodes: int | None) -> list[Cell]:
    names = _names(part)
    arms = tuple(part.arms)
    of_paper = tuple(arm.name for arm in arms if PAPER_ARMS.get(arm.name) == arm.words)
    if part.published is None or not keeps_setting((*part.options, *options)):
        of_paper = ()
    found: dict[str, Cell] = {}  # by the folded name, since some disks do not tell capitals
    for values in product(*map(range, map(len, part.axes.values()))):
        chosen = dict(zip(part.axes, values, strict=True))
        axes = {axis: part.axes[axis][place] for axis, place in chosen.items()}
        choices = [part.configs[axis][chosen[axis]] for axis in SETS_OF_CONFIGS if axis in part.configs]
        name = "_".join(names[axis][place] for axis, place in chosen.items())
        if len(name.encode()) > NAME_BYTES or name.casefold() in found:
            name = f"{name.encode()[: NAME_BYTES - 9].decode(errors='ignore')}-{_digest(axes)}"
        given = {"data.shot": axes.get("shots"), "data.seed": axes.get("seeds")}
        options_of_axes = {option: value for option, value in given.items() if value is not None}
        options_of_axes |= {option: axes[option] for option in part.grid}
        found[name.casefold()] = Cell(
            part.name,
            name,
            prefix + name,
            axes,
            (*(word for choice in choices for word in choice.words), *part.options, *options),
            options_of_axes,
            arms,
            episodes or part.episodes or _usual_episodes(axes.get("shots"), (*part.options, *options)),
            of_paper if all(is_papers(choice.words, choice.name) for choice in choices) else (),
        )
    return list(found.values())


def _usual_episodes(shots: int | None, options: Sequence[str]) -> int | None:
    if shots is None or any(word.startswith("--protocol.episodes") for word in options):
        return None
    return EPISODES_OF_ONE_SHOT if shots == 1 else EPISODES


def _names(part: Part) -> dict[str, list[str]]:
    """Return the part of a folder's name that stands for each value of each axis."""
    names = {axis: [_config_name(choice.name) for choice in choices] for axis, choices in part.configs.items()}
    if "shots" in part.numbers:  # the number in a set's name is that of its own config
        names["sets"] = [re.sub(r"_\d+shot$", "", name) for name in names["sets"]]
    for axis, ending in (("shots", "{}shot"), ("seeds", "seed{}")):
        if axis in part.numbers:
            names[axis] = [ending.format(value) for value in part.numbers[axis]]
    last = [option.rpartition(".")[2] for option in part.grid]
    for option, values in part.grid.items():
        short = option.rpartition(".")[2]
        start = short if last.count(short) == 1 else option.replace(".", "_")
        names[option] = [name_part(f"{start}_{_text(value)}") for value in values]
    return {axis: _distinct(each, part.axes[axis]) for axis, each in names.items()}


def _config_name(name: str) -> str:
    name = name.removesuffix(".yaml")
    if Path(name).is_absolute():
        name = Path(name).name
    for folder in ("backbones/", "tuners/", "methods/"):
        name = name.removeprefix(folder)
    return name_part(name)


def _distinct(names: list[str], values: Sequence[Any]) -> list[str]:
    """Tell names apart that are the same for different values."""
    lowered = [name.casefold() for name in names]
    return [
        f"{name}-{_digest(value)}" if lowered.count(name.casefold()) > 1 else name
        for name, value in zip(names, values, strict=True)
    ]


def _digest(value: Any) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()[:8]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
