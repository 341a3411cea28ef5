"""What is logged next to numbers: pictures of an episode, tables of classes, and the figures of the report."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..run_folder import Row, RunFolder

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """A table: names of its columns, and rows of text and numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def csv(self) -> str:
        """Return the table as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()

    def markdown(self, most: int = 200) -> str:
        """Return the first rows as a table in Markdown."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows[:most]]
        shown = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
        left_out = len(self.rows) - most
        return "\n".join([*shown, *([f"\n{left_out} more rows are left out."] if left_out > 0 else [])])


@dataclass(frozen=True)
class Picture:
    """A picture: a PNG file or its content, with a line of text."""

    content: Path | bytes
    caption: str

    def png(self) -> bytes:
        """Return the content of the PNG file."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content


@dataclass(frozen=True)
class Content:
    """Tables and pictures by name."""

    tables: Mapping[str, Table] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tables or self.pictures)


NOTHING = Content()


def episode_content(folder: RunFolder, episode: int, unit: str = "episode") -> Content:
    """Return the pictures that the run has drawn of an episode; the name is that of the file without its number."""
    stem = f"episode_{episode:04d}_"
    found = sorted(folder.pictures.glob(f"{stem}*.png")) if folder.pictures.is_dir() else []
    return Content(
        pictures={
            f"pictures/{path.stem.removeprefix(stem)}": Picture(
                path, f"{path.stem.removeprefix(stem)}, {unit} {episode}"
            )
            for path in found
        }
    )


def run_content(rows: Sequence[Row], methods: Sequence[str], folder: RunFolder | None) -> Content:
    """Return the tables of all rows and, of a run folder that has a summary, the figures of the report."""
    sound = [row for row in rows if row["method"] in methods and not row.get("diverged")]
    tables = {"per_class": per_class_table(sound, methods), "confusion": confusion_table(sound, methods)}
    return Content(
        {name: table for name, table in tables.items() if table.rows}, {} if folder is None else report_figures(folder)
    )


def per_class_table(rows: Sequence[Row], methods: Sequence[str]) -> Table:
    """Return the test images of each class over all episodes, how many were right, and the share in percent."""
    lines: list[tuple[Cell, ...]] = []
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        episodes: Counter[str] = Counter()
        images: Counter[str] = Counter()
        right: Counter[str] = Counter()
        for row in own:
            for name, counts, place in _counts(row):
                episodes[name] += 1
                images[name] += sum(counts)
                right[name] += counts[place]
        lines += [
            (method, name, episodes[name], images[name], right[name], 100 * right[name] / images[name])
            for name in sorted(images)
            if images[name]
        ]
    return Table(("method", "class", "episodes", "test_images", "right", "accuracy"), tuple(lines))


def confusion_table(rows: Sequence[Row], methods: Sequence[str]) -> Table:
    """Return how many test images of a class were taken for which class, over all episodes; zeros are left out."""
    lines: list[tuple[Cell, ...]] = []
    for method in methods:
        cells: Counter[tuple[str, str]] = Counter()
        for row in rows:
            if row["method"] == method:
                for name, counts, _ in _counts(row):
                    for predicted, count in zip(row["classes"], counts, strict=True):
                        cells[name, predicted] += count
        lines += [(method, *names, count) for names, count in sorted(cells.items()) if count]
    return Table(("method", "true_class", "predicted_class", "test_images"), tuple(lines))


def _counts(row: Row) -> list[tuple[str, list[int], int]]:
    """Return of each class its name, how many of its images were taken for each class, and its place."""
    counts, names = row.get("confusion") or [], row.get("classes") or []
    if len(counts) != len(names):
        return []
    return [
        (name, [int(count) for count in line], place)
        for place, (name, line) in enumerate(zip(names, counts, strict=True))
    ]


def report_figures(folder: RunFolder) -> dict[str, Picture]:
    """Return the charts that `dtrap report RUN --html` draws of a run, by section and number."""
    from ..reports.figures import chart_sections
    from ..reports.pictures import feature_section
    from ..reports.report import read_report

    comparison = read_report([str(folder.path)]).comparison
    pictures: dict[str, Picture] = {}
    for section in [*chart_sections(comparison, []), feature_section(comparison)]:
        for number, chart in enumerate(section.charts, start=1):
            ending = f"_{number}" if len(section.charts) > 1 else ""
            pictures[f"figures/{section.key}{ending}"] = Picture(chart.png(), f"{chart.title}. {chart.note}".strip())
    return pictures


def plain_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are numbers."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}
