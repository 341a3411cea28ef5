"""What a report shows of runs over a user's own images: classes with counts, and the sheets of images in doubt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...lightning_modules.exact_interval import exact_interval
from ..claims import REPEAT, TASK, number_of
from .merging import Comparison, Entry, Task
from .runs import is_within
from .tables import Cell, TextTable

SHEET = "wrong_or_unsure"
MOST_CLASSES = 100


def are_own(comparison: Comparison) -> bool:
    """Whether all tasks are over a user's own images, so that none is an episode."""
    return all(task.unit in (TASK, REPEAT) for task in comparison.tasks)


def place_of(task: Task, label: str, number: int) -> str:
    """Return such as "ISIC 5-way 5-shot, svl-ra, episode 3"; the only task of a folder has no number."""
    places = [] if task.unit == TASK else [f"{task.unit} {number_of(task.unit, number)}"]
    return ", ".join([task.title, label, *places])


def class_tables(comparison: Comparison, labels: Mapping[Any, str]) -> Iterator[TextTable]:
    """Yield the right images and the exact interval of each class, for tasks over a user's own images."""
    for task in comparison.tasks:
        rows = {labels[entry.key]: row for entry in task.entries for row in entry.sound if row.get("confusion")}
        if task.unit != TASK or not rows:
            continue
        counts = {label: _counts(row) for label, row in rows.items()}
        names = list(dict.fromkeys(name for found in counts.values() for name in found))
        lines = [
            [Cell(name), *(Cell(_accuracy(*counts[label].get(name, (0, 0)))) for label in counts)]
            for name in names[:MOST_CLASSES]
        ]
        notes = ["Right images of each class, and the accuracy in percent with its exact binomial 95 % interval."]
        notes += [f"The first {MOST_CLASSES} of {len(names):,} classes."] if len(names) > MOST_CLASSES else []
        caption = f"{task.title}: classes" if len(comparison.tasks) > 1 else "Classes"
        yield TextTable(caption, ["class", *counts], lines, notes, key="classes")


def sheets(entry: Entry) -> Iterator[Path]:
    """Yield the sheets of an entry's test images in doubt that lie within their run folder."""
    for source in entry.sources:
        ending = "" if source is source.run.methods[0] else f".{source.name}"
        path = source.run.folder / "test" / f"{SHEET}{ending}.png"
        if "/" not in source.name and path.is_file() and is_within(path, source.run.folder):
            yield path


def _counts(row: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return right and all test images of each class."""
    confusion = row["confusion"]
    return {name: (int(confusion[n][n]), int(sum(confusion[n]))) for n, name in enumerate(row["classes"])}


def _accuracy(right: int, images: int) -> str:
    if not images:
        return "no test image"
    low, high = exact_interval(right, images)
    return f"{right} of {images}: {100 * right / images:.1f}, {low:.1f} to {high:.1f}"
