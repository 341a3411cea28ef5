"""`dtrap report`: the summaries of several runs in one table, a row per method and a column per set."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..console import CommandParser, print_table
from ..errors import DtrapError
from ..files import write_atomically
from ..protocol.run_folder import RunFolder

TITLE_WIDTH = 16
COLUMNS = ("method", "backbone", "tuner", "set", "mean", "half_width", "episodes", "episodes_asked", "run")


@dataclass(frozen=True)
class Method:
    """What a row of the table is.

    Attributes:
        name: Name of the method in its run.
        backbone: Name and weights of the backbone; empty where the summary does not say.
        tuner: Name of the tuner's class; empty where the summary does not say.
    """

    name: str
    backbone: str
    tuner: str


@dataclass(frozen=True)
class Entry:
    """What one run found with one method.

    Attributes:
        mean: Accuracy in percent; None without a result or without held-out images.
        half_width: Half width of its 95% interval; None for a single episode.
        episodes: Finished episodes.
        asked: Episodes of the whole run.
        folder: The run's folder.
    """

    mean: float | None
    half_width: float | None
    episodes: int
    asked: int
    folder: Path

    @property
    def complete(self) -> bool:
        """Whether every episode has a result."""
        return self.episodes >= self.asked


class Report:
    """The entries of several runs by method and description.

    Args:
        folders: Run folders of `dtrap fit`.

    Attributes:
        sets: Protocol of each task by its description, such as "ISIC 5-way 5-shot", in the order of the runs.
        methods: The methods, in the order of the runs; of one name with another backbone or tuner it is another.
        entries: {(method, description): Entry}.

    Raises:
        DtrapError: A folder has no sound summary, or two have the same method on the same task.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.entries: dict[tuple[Method, str], Entry] = {}
        self.sets: dict[str, str] = {}
        for folder in folders:
            description, protocol, found = read_entries(folder)
            self.sets.setdefault(description, protocol)
            for method, entry in found.items():
                known = self.entries.setdefault((method, description), entry)
                if known is not entry:
                    raise DtrapError(
                        f"{known.folder} and {folder} both have '{method.name}' on {description}. Leave one out; runs "
                        "that differ in more than method, backbone and tuner need names (--protocol.method)."
                    )
        self.methods = list(dict.fromkeys(method for method, _ in self.entries))

    @property
    def means(self) -> dict[str, list[str]]:
        """Sets that a mean is taken over, by its title: those of one protocol, where there are several."""
        by_protocol: dict[str, list[str]] = {}
        for name, protocol in self.sets.items():
            by_protocol.setdefault(protocol, []).append(name)
        several = len(by_protocol) > 1
        return {
            f"mean of {len(names)}{f', {protocol}' if several else ''}": names
            for protocol, names in by_protocol.items()
            if len(names) > 1
        }

    def mean_over(self, names: Sequence[str], method: Method) -> tuple[float, bool] | None:
        """Plain mean of the sets' means and whether all runs are complete; None where the method lacks a set."""
        entries = [self.entries.get((method, name)) for name in names]
        found = [entry for entry in entries if entry is not None]
        means = [entry.mean for entry in found if entry.mean is not None]
        if len(means) < len(names):
            return None
        return sum(means) / len(means), all(entry.complete for entry in found)

    def label(self, method: Method) -> str:
        """Name of a row: that of the method, with backbone or tuner where methods of its name have several."""
        namesakes = [other for other in self.methods if other.name == method.name]
        told = [
            getattr(method, part) or f"unknown {part}"
            for part in ("backbone", "tuner")
            if len({getattr(other, part) for other in namesakes}) > 1
        ]
        return f"{method.name} ({', '.join(told)})" if told else method.name

    def table(self) -> Table:
        """Mean ± half width in percent of every entry; with several sets of a protocol the mean over them."""
        table = Table(box=box.SIMPLE)
        table.add_column("method", no_wrap=True)
        for title in [*self.sets, *self.means]:
            table.add_column(Text("\n".join(textwrap.wrap(title, TITLE_WIDTH))), justify="right", no_wrap=True)
        for method in self.methods:
            cells = [_cell(self.entries.get((method, name))) for name in self.sets]
            for names in self.means.values():
                mean = self.mean_over(names, method)
                cells.append("" if mean is None else f"{mean[0]:.1f}{'' if mean[1] else ' (unfinished)'}")
            table.add_row(*(Text(cell) for cell in [self.label(method), *cells]))
        return table

    def csv(self) -> str:
        """The numbers of the table, not rounded, with one line per method and set and one for each mean over sets."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for method in self.methods:
            for name in self.sets:
                entry = self.entries.get((method, name))
                if entry is not None:
                    numbers = (entry.mean, entry.half_width, entry.episodes, entry.asked)
                    writer.writerow([*astuple(method), name, *numbers, entry.folder])
            for title, names in self.means.items():
                mean = self.mean_over(names, method)
                if mean is not None:
                    writer.writerow([*astuple(method), title, mean[0], None, None, None, None])
        return stream.getvalue()


def read_entries(folder: Path) -> tuple[str, str, dict[Method, Entry]]:
    """Description and protocol of a run, and the entry of each of its methods.

    Raises:
        DtrapError: The folder has no summary, or one that `dtrap fit` has not written so.
    """
    path = RunFolder(folder).summary
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        asked = _number(summary["episodes"])
        methods = {
            Method(name, str(method.get("backbone", "")), str(method.get("tuner", ""))): _entry(
                method, int(asked), folder
            )
            for name, method in summary["methods"].items()
        }
        description = summary["description"]
        if not isinstance(description, str) or not methods:
            raise ValueError("it has no description or no method")
    except (FileNotFoundError, NotADirectoryError):
        what = f"has no {path.name}" if folder.is_dir() else "is no folder"
        raise DtrapError(
            f"{folder} {what}. Expected the folder of a run of dtrap fit, which holds {path.name} once the run has "
            "ended or was interrupted."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise DtrapError(
            f"{path}: not a summary of dtrap fit ({reason}). Start that run again as before: its results are kept "
            "and the summary is written anew."
        ) from error
    return description, str(summary.get("protocol", "")), methods


def report(arguments: list[str], console: Console) -> int:
    """Run `dtrap report`; see `dtrap report --help`."""
    try:
        options, unknown = _parser().parse_known_args(arguments)
    except SystemExit:  # --help, which argparse has printed
        return 0
    if unknown:
        raise DtrapError(f"report: '{unknown[0]}' is not known. See dtrap report --help.")
    found = Report([Path(run).expanduser() for run in options.runs])
    print_table(found.table(), console)
    if options.csv is not None:
        write_atomically(Path(options.csv).expanduser(), found.csv().encode(), "or name another file with --csv.")
        console.print(f"Written: {options.csv}", soft_wrap=True, markup=False)
    return 0


def _entry(method: dict[str, Any], asked: int, folder: Path) -> Entry:
    accuracy = method["accuracy"]
    mean = None if accuracy is None else _number(accuracy["mean"])
    half_width = None if accuracy is None or accuracy["half_width"] is None else _number(accuracy["half_width"])
    return Entry(mean, half_width, int(_number(method["episodes"])), asked, folder)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"found {value!r} in place of a number")
    return value


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return ""
    counted = f"{entry.episodes} of {entry.asked}"
    if entry.mean is None:
        return "no accuracy" if entry.complete else counted
    percent = f"{entry.mean:.1f}" if entry.half_width is None else f"{entry.mean:.1f} ± {entry.half_width:.1f}"
    return percent if entry.complete else f"{percent} ({counted})"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="dtrap report",
        description="Show the results of several runs in one table: a row per method, a column per set, accuracies in "
        "percent with the 95% interval over episodes or seeds, and the plain mean over the sets.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, such as runs/my_run")
    parser.add_argument("--csv", metavar="FILE", help="write the same numbers, not rounded, into this file")
    return parser
