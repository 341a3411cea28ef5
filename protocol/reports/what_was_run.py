"""What was run: configs, versions, and the commands that repeat it."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import visible
from ...parsing import read_json
from .merging import Comparison, flat_settings, run_names
from .runs import LONGEST_TEXT, Run, is_within
from .tables import Cell, TextTable

LIBRARIES = ("numpy", "scipy", "pandas", "matplotlib")
LARGEST_CARD = 1 << 20
LONGEST_VALUE = 120


@dataclass(frozen=True)
class RunRecord:
    """How one run was made.

    Attributes:
        title: Name of the run.
        facts: What it was, as lines of a list: a name and a value.
        command: The command that repeats it in a new folder.
        settings: All settings of the main method, and what others have otherwise.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    command: str
    settings: TextTable


def run_records(comparison: Comparison) -> Iterator[RunRecord]:
    """Yield a record for each run."""
    names = run_names(comparison.runs)
    for run in comparison.runs:
        yield RunRecord(visible(names[id(run)]), list(_facts(run)), command_of(run), _settings(run))


def study_commands(folders: Sequence[Path]) -> list[str]:
    """Return the commands that run what studies lack."""
    commands = []
    for folder in folders:
        try:
            file = read_json(folder / "study.json")["file"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(file, str):
            commands.append(shlex.join(["dtrap", "study", visible(file)]))
    return commands


def command_of(run: Run) -> str:
    """Return the command that repeats a run in a new folder; its config names the compared methods."""
    folder = visible(str(run.folder))
    again = f"{folder.rstrip('/')}_again"
    return shlex.join(["dtrap", "fit", "--config", f"{folder}/config.yaml", "--protocol.folder", again])


def page_versions() -> str:
    """Return the versions that this page was made with."""
    found = [f"dtrap {__version__}", f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    done = {method.name: len(method.rows) for method in run.methods}
    plural = "" if run.asked == 1 else "s"
    for name, count in done.items():
        state = f"{count} of {run.asked} {run.unit}{plural}" if count < run.asked else f"{run.asked} {run.unit}{plural}"
        yield visible(name), state
    seconds = [row["seconds"] for method in run.methods for row in method.rows.values() if row.get("seconds")]
    if seconds:
        yield "time", f"{sum(seconds) / 60:.1f} minutes, {sum(seconds) / len(seconds):.1f} seconds a row"
    yield "data files", visible(run.data_files or "not recorded")
    found = run.versions or _card_versions(run)
    words = ", ".join(f"{name} {value}" for name, value in found.items())
    yield "versions", visible(words) or "not recorded; --protocol.save_adapters true of dtrap fit records them"


def _card_versions(run: Run) -> dict[str, str]:
    """Versions of the first saved adapter's card."""
    folder = run.folder / "adapters"
    for path in sorted(folder.glob("episode_*.json"))[:1] if folder.is_dir() else []:
        if not is_within(path, run.folder) or path.stat().st_size > LARGEST_CARD:
            continue
        try:
            found = read_json(path).get("versions")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(found, dict):
            return {str(key)[:LONGEST_TEXT]: str(value)[:LONGEST_TEXT] for key, value in list(found.items())[:20]}
    return {}


def _settings(run: Run) -> TextTable:
    """Settings of the main method, with those of others where they differ; neutral options decide no number."""
    flat = [flat_settings(method.settings) for method in run.methods]
    rows = []
    for key in dict.fromkeys(key for settings in flat for key in settings):
        values = [_shown(settings[key]) if key in settings else "" for settings in flat]
        others = ["" if value == values[0] else value for value in values[1:]]
        rows.append([Cell(key), Cell(values[0]), *map(Cell, others)])
    head = ["option", *(method.name for method in run.methods)]
    return TextTable(
        "Settings that decide the numbers; an empty cell is the first method's value", head, rows, texts=len(head)
    )


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
