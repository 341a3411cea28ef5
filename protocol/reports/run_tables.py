"""The tables of several runs: accuracies, differences, further measures, and the frame of the CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..claims import MEASURES, TASK, counted
from ..measured import measure_of
from ..statistics import BINOMIAL, CORRECTED, STUDENT, TOO_FEW, Interval
from .merging import Comparison, Entry, Task
from .numbers import Difference, best_entry, difference, differences, interval_of, measures_of, set_means
from .tables import Cell, TextTable

if TYPE_CHECKING:
    from pandas import DataFrame

METHOD = ["method", "backbone", "tuner"]
NUMBERS = ["mean", "half_width", "low", "high"]
WEIGHTS = ["episodes", "episodes_asked", "diverged", "test_images", "classes", "untested_classes"]
COLUMNS = [*METHOD, "set", *NUMBERS, "interval", *MEASURES, *WEIGHTS, "run"]
BEFORE = "alignment-before"  # begins the keys of tables that are too long for a terminal
# What the table of further measures leaves out, since the table of accuracies has it.
OF_OTHER_TABLES = ("accuracy", *MEASURES)


def run_tables(comparison: Comparison) -> list[TextTable]:
    """Return the tables that have content: accuracies, differences, further measures."""
    found = [accuracy_table(comparison), difference_table(comparison), *measure_tables(comparison)]
    return [table for table in found if table is not None]


def accuracy_table(comparison: Comparison) -> TextTable:
    """Return the accuracies, a row per method and a column per task or mean over sets.

    Below the name of a task stand the episodes and test images of its accuracies, in the cells where they differ.
    """
    labels, means = comparison.labels(), set_means(comparison)
    weights = {
        task: {_weight(entry) for entry in task.entries if entry.values.get("accuracy")} for task in comparison.tasks
    }
    common = {task: next(iter(found)) if len(found) == 1 else "" for task, found in weights.items()}
    best = {task: best_entry(task.entries) for task in comparison.tasks}
    head = ["method"] + [f"{task.title}\n{common[task]}".strip() for task in comparison.tasks] + list(means)
    rows = []
    for key, label in labels.items():
        cells = [Cell(label)]
        for task in comparison.tasks:
            entry = next((entry for entry in task.entries if entry.key == key), None)
            cells.append(Cell("") if entry is None else Cell(_cell(entry, common[task]), entry is best[task]))
        for of_method in means.values():
            mean, entries = of_method.get(key, (None, []))
            unfinished = "" if all(map(complete, entries)) else " (unfinished)"
            cells.append(Cell("" if mean is None else f"{mean:.1f}{unfinished}"))
        rows.append(cells)
    return TextTable("Accuracy in percent", head, rows, _notes(comparison, best), key="accuracy")


def difference_table(comparison: Comparison) -> TextTable | None:
    """Return the differences of all measures of a result; None if there is only one method on each task."""
    found = differences(comparison)
    if not found:
        return None
    labels = comparison.labels()
    names = [name for name in _named(found) if name == "accuracy" or _is_result(name)]
    head = ["task", "difference"] + [
        f"{measure_of(name).title}\n{measure_of(name).difference_unit}".strip() for name in names
    ]
    rows = [
        [Cell(entry.other.task.title), Cell(_difference_name(entry, labels))]
        + [Cell(difference_text(entry, name)) for name in names]
        for entry in found
    ]
    kinds = dict.fromkeys(STUDENT if entry.first.resampled is None else CORRECTED for entry in found)
    notes = [f"95 % intervals ({' or '.join(kinds)}) of the mean difference over the episodes that both have (pairs)."]
    if not all(entry.paired for entry in found):
        notes.append(
            "Unpaired: the two are on different episodes (another seed, other data files or other numbers of images), "
            "so that chance in the episodes is part of the difference; Welch's interval."
        )
    if any(" [" in cell.text for row in rows for cell in row[2:]):
        notes.append("[n and m]: numbers of episodes of an unpaired difference.")
    return TextTable("Differences", head, rows, notes, texts=2, key="differences")


def measure_tables(comparison: Comparison) -> list[TextTable]:
    """Return zero-shot accuracy, cross-entropy and whatever else rows have.

    Few measures are columns of one table, a row per task and method. The many of AlignmentMonitor are the rows of a
    table per task.
    """
    names = [name for name in measures_of(comparison.entries) if name not in OF_OTHER_TABLES]
    names = [name for name in names if not name.startswith("accuracy@")]
    few = [name for name in names if not _of_monitor(name)]
    labels, tables = comparison.labels(), []
    tasks = "tasks" if all(task.unit == TASK for task in comparison.tasks) else "episodes or seeds"
    note = f"Means with their 95 % intervals. [n]: number of {tasks} that have the measure."
    if any(entry.resampled is not None for entry in comparison.entries):
        note += f" Over repeats: {CORRECTED}."
    if few:
        rows = [
            [Cell(entry.task.title), Cell(labels[entry.key])]
            + [Cell(measure_text(interval_of(entry, name), name)) for name in few]
            for entry in comparison.entries
            if any(name in entry.values for name in few)
        ]
        head = ["task", "method", *(f"{measure_of(name).title}\n{measure_of(name).unit}".strip() for name in few)]
        tables.append(TextTable("Further measures", head, rows, [note], texts=2, key="measures"))
    at_end = [name for name in names if _of_monitor(name) and "@" not in name]
    before = [name for name in names if _of_monitor(name) and "@" in name]
    for task in comparison.tasks:
        found = [_monitor_table(task, at_end, labels, "alignment"), _monitor_table(task, before, labels, BEFORE)]
        tables += [table for table in found if table is not None]
    return tables


def _monitor_table(task: Task, names: Sequence[str], labels: Mapping[Any, str], key: str) -> TextTable | None:
    """Return a row for each measure of features that a task has: means, and the first method minus each other."""
    entries = [entry for entry in task.entries if any(name in entry.values for name in names)]
    if not entries:
        return None
    found = [difference(entries[0], other, names) for other in entries[1:]]
    rows = [
        [Cell(measure_of(name).title), Cell(measure_of(name).unit)]
        + [Cell(measure_text(interval_of(entry, name), name)) for entry in entries]
        + [Cell(difference_text(one, name)) for one in found]
        for name in names
        if any(name in entry.values for entry in entries)
    ]
    head = ["measure", "unit", *(labels[entry.key] for entry in entries)]
    head += [f"{labels[entries[0].key]} minus {labels[other.key]}" for other in entries[1:]]
    notes = ["Means with their 95 % intervals over the episodes [n]; differences are paired."]
    notes += [f"Intervals: {CORRECTED}."] if entries[0].resampled is not None else []
    title = f"Alignment{' before the end' if key == BEFORE else ''}: {task.title}"
    return TextTable(title, head, rows, notes, texts=2, key=f"{key}-{task.title}")


def _of_monitor(name: str) -> bool:
    return "." in name


def report_frame(comparison: Comparison) -> DataFrame:
    """Return a line for each method and task, and for each mean over sets, in numbers that are not rounded.

    The columns are `COLUMNS`, then the zero-shot accuracy and the other measures of the rows, each with the half width
    of its interval, and the difference of the first method of the task minus this one: `difference`,
    `difference_half_width`, `pairs`, `difference_kind` ("paired" or "unpaired").
    """
    import pandas as pd

    labels = comparison.labels()
    further = [name for name in measures_of(comparison.entries) if name not in OF_OTHER_TABLES]
    by_other = {id(found.other): found for found in differences(comparison)}
    lines = []
    for key in labels:
        for entry in (entry for entry in comparison.entries if entry.key == key):
            lines.append(_line(entry) | _further(entry, further) | _difference_columns(by_other.get(id(entry))))
        for title, of_method in set_means(comparison).items():
            if key in of_method:
                lines.append(_mean_line(key, title, *of_method[key]))
    columns = [*COLUMNS, "variant", *(part for name in further for part in (name, f"{name}_half_width"))]
    columns += ["difference", "difference_half_width", "pairs", "difference_kind"]
    # As objects first: pyarrow's texts, which pandas would take, cannot hold names that are not UTF-8.
    frame = pd.DataFrame(lines, columns=columns, dtype=object)
    numbers = [name for name in columns if not any(isinstance(value, str) for value in frame[name])]
    frame = frame.assign(**{name: frame[name].infer_objects() for name in numbers})
    return frame.astype(dict.fromkeys([*WEIGHTS, "pairs"], "Int64"))


def complete(entry: Entry) -> bool:
    """Return whether every episode that was asked for has a row."""
    return len(entry.rows) >= entry.asked


def measure_text(found: Interval | None, name: str) -> str:
    """Return a measure's mean with its interval and number of values, such as "0.512 ± 0.020 [40]"; "" for None."""
    if found is None:
        return ""
    digits = measure_of(name).digits
    if found.kind == BINOMIAL:
        return f"{found.mean:.{digits}f}, {found.low:.{digits}f} to {found.high:.{digits}f}"
    half_width = "" if not found.half_width else f" ± {found.half_width:.{digits}f}"
    few = ", too few" if found.too_few else ""
    return f"{found.mean:.{digits}f}{half_width} [{found.count}{few}]"


def difference_text(entry: Difference, name: str) -> str:
    """Return a difference with its interval and what it rests on, such as "+0.50 ± 0.62 (36 pairs)"; "" for none."""
    found = entry.found.get(name)
    if found is None:
        return ""
    digits = measure_of(name).difference_digits
    if entry.paired and found.identical and found.mean == 0:
        return f"identical ({counted(found.count, 'pair')})"
    value = f"{found.mean:+.{digits}f}" + (f" ± {found.half_width:.{digits}f}" if found.half_width else "")
    few = ", too few" if found.too_few else ""
    if entry.paired:
        return f"{value} ({counted(found.count, 'pair')}{few})"
    ours, theirs = entry.counts[name]
    return f"{value} [{ours} and {theirs}{few}]"


def _difference_name(found: Difference, labels: dict[Any, str]) -> str:
    first, other = labels[found.first.key], labels[found.other.key]
    if found.paired:
        return f"{first} minus {other}"
    elsewhere = "" if found.first.task is found.other.task else f" on {found.first.task.title}"
    return f"{first}{elsewhere} minus {other}, unpaired"


def _named(found: Sequence[Difference]) -> list[str]:
    return list(dict.fromkeys(name for entry in found for name in entry.found))


def _is_result(name: str) -> bool:
    """Whether a measure is one of the trained model's results, and not of the start or of an earlier step."""
    return not _of_monitor(name) and "@" not in name and not name.startswith("zero_shot_") and name not in MEASURES


def _weight(entry: Entry) -> str:
    """What an accuracy rests on, such as "400 × 75 images"."""
    rows = [row for row in entry.sound if row.get("accuracy") is not None]
    images, episodes, unit = entry.test_images, len(rows), entry.task.unit
    if images is None:  # of an earlier version
        return counted(episodes, unit) if complete(entry) else ""
    if unit == TASK and episodes == 1:
        return f"{images:,} images"
    if images % episodes == 0:
        return f"{episodes} × {images // episodes:,} images"
    return f"{counted(episodes, unit)}, {images:,} images"


def _cell(entry: Entry, weight: str) -> str:
    """Text of an accuracy with its interval; `weight` is what the head of the column says already."""
    found, diverged = interval_of(entry, "accuracy"), len(entry.rows) - len(entry.sound)
    notes = [] if complete(entry) else [f"{len(entry.rows)} of {entry.asked}"]
    notes += [f"{diverged} diverged"] if diverged else []
    if found is None:
        return ", ".join(notes) or "no accuracy"
    own = _weight(entry)
    notes += [own] if own not in ("", weight) else []
    classes, untested = entry.classes
    notes += [f"{classes - len(untested)} of {classes} classes"] if classes and untested else []
    beside = {key: interval_of(entry, key) for key in MEASURES if len(entry.values.get(key, {})) == found.count}
    notes += [f"{MEASURES[key]} {value.mean:.1f}" for key, value in beside.items() if value is not None]
    return f"{_interval(found)} ({', '.join(notes)})" if notes else _interval(found)


def _interval(found: Interval) -> str:
    if found.kind == BINOMIAL:
        return f"{found.mean:.1f}, {found.low:.1f} to {found.high:.1f}"
    if found.half_width is None:
        return f"{found.mean:.1f}"
    if found.half_width == 0:
        return f"{found.mean:.1f} in all {found.count}"
    return f"{found.mean:.1f} ± {found.half_width:.1f}{', too few' if found.count in TOO_FEW else ''}"


def _notes(comparison: Comparison, best: dict[Task, Entry | None]) -> list[str]:
    """What the intervals are, what means over sets are, what is best, and the classes that no accuracy covers."""
    found = [interval_of(entry, "accuracy") for entry in comparison.entries]
    kinds = [kind for kind in (STUDENT, CORRECTED, BINOMIAL) if any(f is not None and f.kind == kind for f in found)]
    signs = {
        STUDENT: f"±: {STUDENT} over episodes or seeds",
        CORRECTED: f"±: {CORRECTED} over repeats of held-out images",
        BINOMIAL: f"a to b: {BINOMIAL} over the test images",
    }
    notes = [f"95 % intervals. {'; '.join(signs[kind] for kind in kinds)}."] if kinds else []
    for of_method in set_means(comparison).values():
        images = [[entry.test_images for entry in entries] for _, entries in of_method.values()]
        sums = {None if None in own else sum(number or 0 for number in own) for own in images}
        same = sums.pop() if len(sums) == 1 else None
        rests = "" if same is None else f", {counted(same, 'test image')} in all"
        note = f"A mean over sets weighs each set alike and has no interval of its own{rests}."
        notes += [note] if note not in notes else []
    several = [task for task in comparison.tasks if sum(bool(e.values.get("accuracy")) for e in task.entries) > 1]
    if any(best[task] is not None for task in several):
        notes.append(
            "Marked: better than each other method of its column by a paired difference whose 95 % interval excludes "
            "0, each interval by itself."
        )
    if several and not all(best[task] is not None for task in several):
        which = "" if not any(best[task] for task in several) else " in the other columns"
        notes.append(
            f"No method is marked as the best{which}: an interval of a paired difference contains 0, or none exists."
        )
    return notes + _left_out(comparison)


def _left_out(comparison: Comparison) -> list[str]:
    notes = []
    for entry in comparison.entries:
        classes, untested = entry.classes
        if classes and untested:
            notes.append(
                f"{entry.sources[0].run.folder}: {len(untested)} of {classes} classes of '{entry.name}' have no test "
                "image, so the accuracy does not cover them."
            )
        faults = [row for row in entry.rows.values() if row.get("diverged")]
        if faults:
            notes.append(
                f"'{entry.name}' on {entry.task.title}: {len(faults)} diverged and left out ({faults[0]['diverged']})."
            )
    return notes


def _line(entry: Entry) -> dict[str, Any]:
    found = interval_of(entry, "accuracy") or Interval(float("nan"), None, 0)
    name, backbone, tuner, variant = entry.key
    classes, untested = entry.classes
    beside = {key: interval_of(entry, key) for key in MEASURES}
    return {
        "method": name,
        "backbone": backbone,
        "tuner": tuner,
        "variant": variant,
        "set": entry.task.title,
        "mean": found.mean,
        "half_width": found.half_width,
        "low": found.low,
        "high": found.high,
        "interval": found.kind or (STUDENT if found.half_width else ""),
        **{key: None if value is None else value.mean for key, value in beside.items()},
        "episodes": len(entry.rows),
        "episodes_asked": entry.asked,
        "diverged": len(entry.rows) - len(entry.sound),
        "test_images": entry.test_images,
        "classes": classes,
        "untested_classes": len(untested),
        "run": "; ".join(str(source.run.folder) for source in entry.sources),
    }


def _further(entry: Entry, names: Sequence[str]) -> dict[str, Any]:
    found = {name: interval_of(entry, name) for name in names}
    means = {name: value.mean for name, value in found.items() if value is not None}
    return means | {f"{name}_half_width": value.half_width for name, value in found.items() if value is not None}


def _difference_columns(found: Difference | None) -> dict[str, Any]:
    interval = None if found is None else found.found.get("accuracy")
    if found is None or interval is None:
        return {}
    return {
        "difference": interval.mean,
        "difference_half_width": interval.half_width,
        "pairs": interval.count if found.paired else None,
        "difference_kind": "paired" if found.paired else "unpaired",
    }


def _mean_line(key: tuple[str, str, str, str], title: str, mean: float, entries: Sequence[Entry]) -> dict[str, Any]:
    lines = [_line(entry) for entry in entries]
    summed = ("episodes", "episodes_asked", "diverged", "test_images")
    sums = {
        name: None if any(line[name] is None for line in lines) else sum(line[name] for line in lines)
        for name in summed
    }
    return dict(zip((*METHOD, "variant"), key, strict=True)) | {"set": title, "mean": mean} | sums
