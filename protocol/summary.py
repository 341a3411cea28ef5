"""The summary of a run: the numbers of summary.json, and the lines on the console."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..console import print_table
from .run_folder import Row
from .statistics import Interval, mean_interval, paired_difference


def summarize(
    rows: Sequence[Row],
    description: str,
    methods: Sequence[str],
    *,
    episodes: int,
    support_images: int | None = None,
    unit: str = "episode",
) -> dict[str, Any]:
    """Compute the numbers of a run over the episodes 0 .. episodes - 1; other episodes and methods do not count.

    Args:
        rows: Result rows as `ResultRows.read` returns them; accuracies in percent.
        description: The task, such as "ISIC 5-way 5-shot".
        methods: Names of the methods, in the order of the output; differences are the first minus each other.
        episodes: Number of requested episodes.
        support_images: Number of training images of an episode, for runs without held-out images.
        unit: What an episode is called: "episode", or "seed" in the all-way protocol.

    Returns:
        `description`, `unit`, `episodes`, `support_images`, `seconds` (all rows together), `methods` {name:
        `episodes`, `accuracy`, `zero_shot_accuracy`, `per_class` {class: `mean`, `episodes`}, `seconds`} and
        `differences` {name: ...}. Accuracies and differences are {`mean`, `half_width`, `count`}, with the
        half width of the 95% interval, or None.
    """
    chosen = {name: [row for row in rows if row["method"] == name and row["episode"] < episodes] for name in methods}
    first = _accuracies(chosen[methods[0]])
    summaries = {name: _method_summary(chosen[name]) for name in methods}
    return {
        "description": description,
        "unit": unit,
        "episodes": episodes,
        "support_images": support_images,
        "seconds": sum(summary["seconds"] for summary in summaries.values()),
        "methods": summaries,
        "differences": {name: _difference(first, _accuracies(chosen[name])) for name in methods[1:]},
    }


summarise = summarize  # the name in dtrap 0.1.0


def render(summary: Mapping[str, Any], console: Console) -> None:
    """Print the result line of each method and, for several methods, a table with the paired differences.

    Lines are neither cut nor wrapped at any width of the console, and have no colors.
    """
    if len(summary["methods"]) > 1:
        print_table(_table(summary), console)
    for line in result_lines(summary):
        console.print(Text(line), soft_wrap=True)


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return one line per method: `ISIC 5-way 5-shot · 400 episodes · 51.2 ± 0.6 %  (zero-shot 30.1 ± 0.4 %)`.

    The method's name follows the description if there are several methods or it is transductive. An unfinished run has
    `37 of 400 episodes`. A run without held-out images has no accuracy.
    """
    several = len(summary["methods"]) > 1
    lines = []
    for name, method in summary["methods"].items():
        named = several or name.endswith("transductive")
        start = [summary["description"], name] if named else [summary["description"]]
        lines.append(" · ".join(start + _claims(summary, method)))
    return lines


def _claims(summary: Mapping[str, Any], method: Mapping[str, Any]) -> list[str]:
    done, asked = method["episodes"], summary["episodes"]
    count = f"{done} of {asked}" if done < asked else f"{asked}"
    counted = f"{count} {summary['unit']}{'' if asked == 1 else 's'}"
    if done == 0:
        return [counted, "no result yet"]
    if method["accuracy"] is None:
        images = summary["support_images"]
        trained = [] if images is None else [f"trained on {images} image{'' if images == 1 else 's'}"]
        return [*([counted] if asked > 1 else []), *trained, "no held-out images, so no accuracy"]
    zero_shot = method["zero_shot_accuracy"]
    compared = "" if zero_shot is None else f"  (zero-shot {_percent(zero_shot)})"
    return [counted, f"{_percent(method['accuracy'])}{compared}"]


def _table(summary: Mapping[str, Any]) -> Table:
    first = next(iter(summary["methods"]))
    table = Table(box=box.SIMPLE)
    table.add_column("method", no_wrap=True)
    for title in ("accuracy", "zero-shot"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column(Text(f"{first} minus this, paired"), justify="right", no_wrap=True)
    for name, method in summary["methods"].items():
        accuracies = (method["accuracy"], method["zero_shot_accuracy"])
        cells = [name, *(_percent(value) for value in accuracies), _points(summary["differences"].get(name))]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _percent(interval: Mapping[str, Any] | None) -> str:
    return "" if interval is None else f"{Interval(**interval)} %"


def _points(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return ""
    half_width = "" if interval["half_width"] is None else f" ± {interval['half_width']:.2f}"
    return f"{interval['mean']:+.2f}{half_width} ({interval['count']} pair{'' if interval['count'] == 1 else 's'})"


def _method_summary(rows: Sequence[Row]) -> dict[str, Any]:
    by_class: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, accuracy in (row.get("per_class") or {}).items():
            if accuracy is not None:
                by_class[name].append(accuracy)
    return {
        "episodes": len(rows),
        "accuracy": _interval(_accuracies(rows)),
        "zero_shot_accuracy": _interval(_accuracies(rows, "zero_shot_accuracy")),
        "per_class": {
            name: {"mean": sum(values) / len(values), "episodes": len(values)}
            for name, values in sorted(by_class.items())
        },
        "seconds": sum(row.get("seconds") or 0.0 for row in rows),
    }


def _accuracies(rows: Sequence[Row], key: str = "accuracy") -> dict[int, float]:
    return {row["episode"]: row[key] for row in rows if row.get(key) is not None}


def _interval(values: Mapping[int, float]) -> dict[str, Any] | None:
    return asdict(mean_interval(values.values())) if values else None


def _difference(first: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any] | None:
    return asdict(paired_difference(first, other)) if first.keys() & other.keys() else None
