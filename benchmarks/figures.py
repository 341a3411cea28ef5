"""Figures with their bars, the file that keeps them, and the tables that show them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .measuring import verdict
from .settings import Settings

# What must be the same for figures of several runs to stand in one file.
SAME = ("machine", "device", "model", "threads", "precision")


@dataclass(frozen=True)
class Figure:
    """One number of the suite.

    Attributes:
        name: Name in the JSON file.
        text: What it is.
        unit: Its unit; "s" is CPU time on a CPU and wall time on a GPU unless the text says otherwise.
        least: The bar: at least this.
        most: The bar: at most this.
        device: Where the bar holds.
        any_model: Whether the bar holds for `--model tiny`, too.
    """

    name: str
    text: str
    unit: str = ""
    least: float | None = None
    most: float | None = None
    device: str = "cpu"
    any_model: bool = False

    @property
    def bar(self) -> str:
        """The bar in words."""
        if self.least is not None:
            return f"at least {self.least:,g}"
        return "" if self.most is None else f"at most {self.most:,g}"

    def met(self, value: float, conditions: Mapping[str, Any]) -> bool | None:
        """Return whether the bar is met; None where there is none for this model and device."""
        right_model = self.any_model or conditions["model"] == "vit"
        if not self.bar or conditions["device"] != self.device or not right_model:
            return None
        return value >= self.least if self.least is not None else value <= (self.most or 0.0)


@dataclass
class Report:
    """Measured figures of one machine.

    Attributes:
        conditions: Machine, device, model, threads and precision.
        runs: Date, commit and versions of each run that added figures.
        figures: By name: value, samples, the number of the run, and a note.
    """

    conditions: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a file that `write` made."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(content["conditions"], content["runs"], content["figures"])

    def write(self, path: Path) -> None:
        """Replace the file."""
        content = {"conditions": self.conditions, "runs": self.runs, "figures": self.figures}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def merge(self, other: Report) -> None:
        """Take the figures of another report; of a figure in both, the other's.

        Raises:
            ValueError: It was measured on another machine or with other settings.
        """
        for key in SAME:
            if self.conditions[key] != other.conditions[key]:
                raise ValueError(
                    f"figures of {key} {self.conditions[key]!r} and of {other.conditions[key]!r} are not mixed in one "
                    "table. Give another --json FILE."
                )
        first = len(self.runs)
        self.runs += other.runs
        for name, figure in other.figures.items():
            self.figures[name] = figure | {"run": figure["run"] + first}

    def add(self, name: str, samples: float | Sequence[float], note: str = "") -> None:
        """Keep a figure of the current run: the median of its samples."""
        listed = [samples] if isinstance(samples, (int, float)) else list(samples)
        figure = {"value": statistics.median(listed), "samples": listed, "run": len(self.runs) - 1}
        self.figures[name] = figure | ({"note": note} if note else {})

    def add_ratios(self, name: str, others: Sequence[float], ours: Sequence[float]) -> None:
        """Keep how many times as long the others took: the ratio of the medians; samples are the pairs' ratios."""
        if others:
            self.add(name, [other / own for other, own in zip(others, ours, strict=False)])
            self.figures[name]["value"] = statistics.median(others) / statistics.median(ours)


Measure = Callable[[Settings, Report], None]


@dataclass(frozen=True)
class Part:
    """Figures that are measured together.

    Attributes:
        name: What selects it on the command line.
        measure: Adds the figures to a report.
        figures: The figures.
        devices: Where it can be measured.
        minutes: Time on a GPU; a part with less time left is not run.
    """

    name: str
    measure: Measure
    figures: tuple[Figure, ...]
    devices: tuple[str, ...] = ("cpu", "cuda")
    minutes: float = 0.5


def shown(value: float) -> str:
    """Return a number with three significant digits, or all before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value else "0"


def line(figure: Figure, report: Report) -> str:
    """Return what is printed of a figure."""
    found = report.figures.get(figure.name)
    if found is None:
        return f"{figure.text}: not run"
    met = figure.met(found["value"], report.conditions)
    bar = "" if met is None else f" ({figure.bar}): {verdict(met)}"
    note = f" [{found['note']}]" if "note" in found else ""
    return f"{figure.text}: {shown(found['value'])} {figure.unit}".rstrip() + bar + note


def failed(figures: Iterable[Figure], report: Report) -> list[str]:
    """Return the names of the figures that miss their bars."""
    found = [(each, report.figures.get(each.name)) for each in figures]
    return [each.name for each, got in found if got and each.met(got["value"], report.conditions) is False]


def cell(figure: Figure, report: Report) -> str:
    """Return the cell of a table; empty if the figure was not measured."""
    found = report.figures.get(figure.name)
    if found is None:
        return ""
    met = figure.met(found["value"], report.conditions)
    return shown(found["value"]) + ("" if met is None else f" {verdict(met)}")


def heading(report: Report) -> str:
    """Return what a column is headed with."""
    known = report.conditions
    place = known["machine"] if known["device"] == "cuda" else f"{known['machine']}, {known['threads']} thread(s)"
    return f"{place}, {known['precision']}" + ("" if known["model"] == "vit" else f", {known['model']} model")


def markdown(parts: Iterable[Part], reports: Sequence[Report]) -> str:
    """Return a table in Markdown with a column for each report, and what the runs were made with."""
    heads = ["figure", "unit", "bar", *map(heading, reports)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for part in parts:
        for figure in part.figures:
            cells = [figure.text, figure.unit, figure.bar, *(cell(figure, report) for report in reports)]
            lines.append("| " + " | ".join(cells) + " |")
    for report in reports:
        lines += ["", f"{heading(report)}:", ""]
        for number, run in enumerate(report.runs):
            used = [name for name, figure in report.figures.items() if figure["run"] == number]
            if used:
                versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
                lines.append(
                    f"- {run['date']}, commit {run['commit']}, before {run['before'] or 'not run'}: {versions}"
                )
    return "\n".join(lines)
