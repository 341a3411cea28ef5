"""The numbers of a report: means, means over sets, differences, and which method is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..statistics import (
    CORRECTED,
    STUDENT,
    Interval,
    binomial_interval,
    mean_interval,
    paired_difference,
    resampling_ratio,
    student_quantile,
)
from ..summary import tested_images
from .merging import Comparison, Entry, Task

ACCURACIES = ("accuracy", "zero_shot_accuracy")


@dataclass(frozen=True)
class Difference:
    """One method minus another.

    Attributes:
        first: The method that the other is subtracted from.
        other: The other method, perhaps on other episodes.
        found: Intervals by flat name of a measure; `count` is the number of pairs where the difference is paired.
        paired: Whether it is the mean over common episodes.
        counts: Numbers of values of both where it is not paired, by flat name.
    """

    first: Entry
    other: Entry
    found: dict[str, Interval]
    paired: bool
    counts: dict[str, tuple[int, int]]


def interval_of(entry: Entry, measure: str) -> Interval | None:
    """Return a measure's mean with its interval, of a single task's accuracy the exact one over its test images."""
    if measure not in entry.intervals:
        entry.intervals[measure] = _interval_of(entry, measure)
    return entry.intervals[measure]


def _interval_of(entry: Entry, measure: str) -> Interval | None:
    values = entry.values.get(measure)
    if not values:
        return None
    if measure not in ACCURACIES:
        return mean_interval(values.values(), entry.resampled)
    ((key, value), *others) = values.items()
    images = tested_images(entry.rows[key])
    if not others and images:
        return binomial_interval(round(value / 100 * images), images)
    return replace(mean_interval(values.values(), entry.resampled), images=entry.test_images)


def measures_of(entries: Sequence[Entry]) -> list[str]:
    """Return the flat names of all measures of some entries, in the order of their first row."""
    return list(dict.fromkeys(name for entry in entries for name in entry.values))


def difference(first: Entry, other: Entry, measures: Sequence[str]) -> Difference:
    """Return a difference, paired if both have common episodes."""
    paired = first.task is other.task and bool(_common(first, other, "accuracy") or not first.values)
    found, counts = {}, {}
    for name in measures:
        ours, theirs = first.values.get(name, {}), other.values.get(name, {})
        if paired and ours.keys() & theirs.keys():
            found[name] = paired_difference(ours, theirs, resampling_ratio([*first.sound, *other.sound]))
        elif not paired and ours and theirs:
            found[name] = unpaired_difference(
                list(ours.values()), list(theirs.values()), (first.resampled, other.resampled)
            )
            counts[name] = len(ours), len(theirs)
    return Difference(first, other, found, paired, counts)


def unpaired_difference(
    first: Sequence[float], second: Sequence[float], resampled: tuple[float | None, float | None] = (None, None)
) -> Interval:
    """Difference of the means of two independent samples with Welch's 95 % interval; without one for a single value.

    Args:
        first: Values of the first sample.
        second: Values of the second sample.
        resampled: n_test/n_train of each, if its values are of repeats, for the corrected variance of their mean.
    """
    import numpy as np

    ours, theirs = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    mean = float(ours.mean() - theirs.mean())
    if min(len(ours), len(theirs)) < 2:
        return Interval(mean, None, min(len(ours), len(theirs)))
    parts = [
        float(sample.var(ddof=1)) * (1 / len(sample) + (ratio or 0.0))
        for sample, ratio in zip((ours, theirs), resampled, strict=True)
    ]
    if sum(parts) == 0:
        return Interval(mean, 0.0, min(len(ours), len(theirs)))
    freedom = sum(parts) ** 2 / sum(p**2 / (len(s) - 1) for p, s in zip(parts, (ours, theirs), strict=True))
    half_width = student_quantile(freedom) * math.sqrt(sum(parts))
    kind = STUDENT if resampled == (None, None) else CORRECTED
    return Interval(mean, half_width, min(len(ours), len(theirs)), mean - half_width, mean + half_width, kind)


def differences(comparison: Comparison) -> list[Difference]:
    """Return the differences of each set of data: the first method minus each other, on all its tasks."""
    found = []
    for title in dict.fromkeys(task.set_title for task in comparison.tasks):
        entries = [entry for task in comparison.tasks if task.set_title == title for entry in task.entries]
        references: dict[Task, Entry] = {}
        for entry in entries:
            first = references.setdefault(entry.task, entry)
            if first is entry:
                # Tasks of one set are compared by their first methods only, unpaired.
                reference = entries[0]
                if entry is not reference and entry.values.get("accuracy") and reference.values.get("accuracy"):
                    found.append(difference(reference, entry, measures_of([reference, entry])))
                continue
            found.append(difference(first, entry, measures_of([first, entry])))
    return found


def best_entry(entries: Sequence[Entry], measure: str = "accuracy", *, higher: bool = True) -> Entry | None:
    """Return the entry that is better than every other one by an interval of the difference that excludes 0.

    Args:
        entries: Methods on one task.
        measure: Flat name of what is compared.
        higher: Whether more is better.

    Returns:
        None if there is no other entry with values, or the interval of a difference contains 0, does not exist, or
        rests on two or three values.
    """
    measured = [(interval.mean, entry) for entry in entries if (interval := interval_of(entry, measure)) is not None]
    if len(measured) < 2:
        return None
    best = (max if higher else min)(measured, key=lambda pair: pair[0])[1]
    others = [entry for _, entry in measured if entry is not best]
    return (
        best
        if all(_is_better(difference(best, other, [measure]).found.get(measure), higher) for other in others)
        else None
    )


def _is_better(found: Interval | None, higher: bool) -> bool:
    if found is None or found.low is None or found.high is None or found.too_few:
        return False
    return found.low > 0 if higher else found.high < 0


def set_means(comparison: Comparison) -> dict[str, dict[tuple[str, str, str, str], tuple[float, list[Entry]]]]:
    """Return the mean over the sets of each protocol, of the methods that have a result on all of them.

    Returns:
        By the title of the mean, such as "mean of 4", and the key of a method: the mean and what it is of. A set with
        several tasks, such as two seeds, would weigh more than the others: then there is no mean.
    """
    protocols = dict.fromkeys(task.runs[0].protocol for task in comparison.tasks)
    found: dict[str, dict[tuple[str, str, str, str], tuple[float, list[Entry]]]] = {}
    for protocol in protocols:
        tasks = [task for task in comparison.tasks if task.runs[0].protocol == protocol]
        if len({task.description for task in tasks}) < len(tasks) or len(tasks) == 1:
            continue
        title = f"mean of {len(tasks)}{f', {protocol}' if len(protocols) > 1 else ''}"
        for key in dict.fromkeys(entry.key for task in tasks for entry in task.entries):
            own = [entry for task in tasks for entry in task.entries if entry.key == key]
            means = [interval.mean for entry in own if (interval := interval_of(entry, "accuracy")) is not None]
            if len(own) == len(means) == len(tasks):
                found.setdefault(title, {})[key] = sum(means) / len(means), own
    return found


def _common(first: Entry, other: Entry, measure: str) -> int:
    values: tuple[Mapping[int, float], Mapping[int, float]] = (
        first.values.get(measure, {}),
        other.values.get(measure, {}),
    )
    return len(values[0].keys() & values[1].keys())
