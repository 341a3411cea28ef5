"""The plan of a study: which cells there are, what is done and missing, and how long it takes; no torch is imported."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from ... import __version__
from ...configs import find_config
from ...errors import DtrapError
from ...files import write_atomically
from ...parsing import read_json
from .cells import Cell
from .file import Study
from .folder import REMEDY, Counts, StudyFolder, count_rows

PLAN_JSON = "plan.json"
FORMAT = "dtrap-plan/1"
PACKAGE = Path(__file__).parents[2]
OUTSIDE = {"tests", "docs", "benchmarks", "tools"}


@dataclass
class PlannedCell:
    """A cell as the plan shows it.

    Attributes:
        title: Part and name.
        folder: Its run folder, relative to the study's; equal cells have one folder.
        episodes: Number of episodes.
        unit: What an episode is called.
        arms: Names of its methods.
        shared: For each method, whether an earlier run of the study has its rows.
        costs: For each method, what identifies the time of an episode.
    """

    title: str
    folder: str
    episodes: int
    unit: str
    arms: list[str]
    shared: list[bool]
    costs: list[str]


@dataclass
class Plan:
    """The plan of a study.

    Attributes:
        made_of: Digest of everything that it depends on.
        cells: All cells, in the order of the study.
        changed: Titles of cells whose folders hold the results of another config.
        measured: Seconds of an episode that were measured, by cost; None where they could not be.
        counts: Rows in the run folders.
    """

    made_of: str
    cells: list[PlannedCell]
    changed: dict[str, str] = field(default_factory=dict)
    measured: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)

    def count(self, folder: StudyFolder) -> None:
        """Count the rows in the run folders; files that have not changed since are not read again."""
        for name in {cell.folder for cell in self.cells}:
            self.counts[name] = count_rows(folder.path / name / "results.jsonl", self.counts.get(name))


def read_plan(folder: StudyFolder, made_of: str) -> Plan | None:
    """Return the plan that was stored in a study's folder; None if there is none or something has changed since."""
    try:
        stored = read_json(folder.path / PLAN_JSON)
        if stored["format"] != FORMAT or stored["made_of"] != made_of:
            return None
        return Plan(
            made_of,
            [PlannedCell(**cell) for cell in stored["cells"]],
            stored["changed"],
            stored["measured"],
            stored["reasons"],
            {name: Counts(**counts) for name, counts in stored["counts"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_plan(folder: StudyFolder, plan: Plan) -> None:
    """Store a plan in the study's folder.

    Raises:
        DtrapError: The folder cannot be written to.
    """
    counts = {name: asdict(counts) for name, counts in plan.counts.items() if counts.size}
    content = {"format": FORMAT, **vars(plan), "cells": [vars(cell) for cell in plan.cells], "counts": counts}
    text = json.dumps(content, ensure_ascii=False) + "\n"
    path = folder.path / PLAN_JSON
    with suppress(OSError):
        if path.read_text(encoding="utf-8") == text:
            return
    write_atomically(path, text, REMEDY)


def made_of(study: Study, cells: Sequence[Cell], data_root: str | None) -> str:
    """Return a digest of what a plan depends on: cells, configs, dtrap, and the folder that names are relative to."""
    digest = hashlib.sha256()
    for part in (__version__, os.getcwd(), data_root, str(study.path.resolve())):
        digest.update(f"{part}\n".encode())
    configs: dict[str, None] = {}
    for words in dict.fromkeys(cell.words for cell in cells):
        configs.update(dict.fromkeys(_configs(words)))
    for arms in dict.fromkeys(cell.arms for cell in cells):
        for arm in arms:
            configs.update(dict.fromkeys(_configs(arm.words)))
    for cell in cells:
        digest.update(repr(cell).encode(errors="backslashreplace"))
    for path in (*sorted(configs), *_package_files()):
        digest.update(f"{path} {_state(path)}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


def _configs(words: Iterable[str]) -> Iterable[str]:
    for option, word in pairwise(words):
        if option == "--config":
            with suppress(DtrapError):
                yield find_config(word)


def _package_files() -> list[str]:
    """The package's own code and configs."""
    found = []
    for folder, folders, names in os.walk(PACKAGE):
        folders[:] = [name for name in folders if name not in OUTSIDE and not name.startswith((".", "__"))]
        found += [os.path.join(folder, name) for name in names if name.endswith((".py", ".yaml"))]
    return sorted(found)


def _state(path: str) -> str:
    """Size and time of a file; the configs of CoOp's sets are written by every process, from code that is listed."""
    try:
        state = os.stat(path)
    except OSError:
        return "absent"
    return f"{state.st_size} {state.st_mtime_ns}"


@dataclass
class Estimate:
    """How long the missing rows of a cell take.

    Attributes:
        missing: Rows that are missing.
        copied: Those of them that an earlier run of the study has or will have.
        seconds: For those to compute; None if it is unknown.
        source: What the time is estimated from.
    """

    missing: int
    copied: int
    seconds: float | None
    source: str


FROM_ROWS, FROM_OTHERS, MEASURED, UNKNOWN = "its rows", "rows of other cells", "measured steps", "unknown"


def estimate(plan: Plan) -> dict[str, Estimate]:
    """Return the estimate of each cell by its title; one that has the folder of an earlier cell has nothing to do."""
    by_cost: dict[str, list[float]] = {}
    for cell in {cell.folder: cell for cell in plan.cells}.values():
        for arm, cost in zip(cell.arms, cell.costs, strict=True):
            number, seconds = plan.counts[cell.folder].seconds.get(arm, (0, 0.0))
            if number:
                known = by_cost.setdefault(cost, [0, 0.0])
                by_cost[cost] = [known[0] + number, known[1] + seconds]
    found: dict[str, Estimate] = {}
    seen: set[str] = set()
    for cell in plan.cells:
        if cell.folder in seen:
            found[cell.title] = Estimate(0, 0, 0.0, "")
            continue
        seen.add(cell.folder)
        found[cell.title] = _estimate(plan, cell, by_cost)
    return found


def _estimate(plan: Plan, cell: PlannedCell, by_cost: dict[str, list[float]]) -> Estimate:
    counts = plan.counts[cell.folder]
    missing = copied = 0
    total: float | None = 0.0
    sources: dict[str, None] = {}
    for arm, shared, cost in zip(cell.arms, cell.shared, cell.costs, strict=True):
        rows = cell.episodes - counts.done(arm, cell.episodes)
        missing += rows
        if shared or not rows:
            copied += rows if shared else 0
            continue
        number, seconds = counts.seconds.get(arm, (0, 0.0))
        if number:
            each, source = seconds / number, FROM_ROWS
        elif cost in by_cost:
            each, source = by_cost[cost][1] / by_cost[cost][0], FROM_OTHERS
        elif plan.measured.get(cost) is not None:
            each, source = plan.measured[cost] or 0.0, MEASURED
        else:
            each, source = None, UNKNOWN
        sources[source] = None
        total = None if total is None or each is None else total + rows * each
    return Estimate(missing, copied, total, ", ".join(sources))


def unknown_costs(plan: Plan) -> dict[str, str]:
    """Return the costs of missing rows for which there is no finished row and no measurement, with a cell of each."""
    known = {
        cost
        for cell in plan.cells
        for arm, cost in zip(cell.arms, cell.costs, strict=True)
        if plan.counts[cell.folder].seconds.get(arm)
    }
    found: dict[str, str] = {}
    for cell in plan.cells:
        for arm, shared, cost in zip(cell.arms, cell.shared, cell.costs, strict=True):
            rows = cell.episodes - plan.counts[cell.folder].done(arm, cell.episodes)
            if rows and not shared and cost not in known and cost not in plan.measured:
                found.setdefault(cost, cell.title)
    return found
