"""Episodes in which no group of images is on two sides, and how many groups are split where none was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import DtrapError
from .collection import ImageCollection
from .episode import Task
from .groups import Positions, Side, can_be_apart, draw_apart
from .index import listing

# How many images of a class go where, such as (("support", 5), ("query", 15)).
Needed = Sequence[tuple[str, int]]
OPTION = "--data.group"


def separable_classes(
    data: ImageCollection, labels: list[int], pools: Sequence[Positions], needed: Needed
) -> list[int]:
    """Return the classes whose images can be drawn without a group on two sides.

    Args:
        data: The images.
        labels: The classes.
        pools: For each side the images of each of these classes that it may have.
        needed: Name of each side and its images per class.

    Raises:
        DtrapError: A class has too few groups, unless `small_classes` is "skip".
    """
    if data.group_of is None:
        return labels
    sides = [Side(pool, [count] * len(labels)) for pool, (_, count) in zip(pools, needed, strict=True)]
    fits = can_be_apart(sides, data.group_of)
    bad = [position for position, fit in enumerate(fits) if not fit]
    if bad and data.small_classes == "error":
        raise too_few(data, [labels[position] for position in bad], needed)
    if bad:
        names = [data.index.class_names[labels[position]] for position in bad]
        data.warn_once(f"left out {len(bad)} class(es) with too few groups of images: {listing(names, len(names))}")
    return [label for label, fit in zip(labels, fits, strict=True) if fit]


def task_apart(
    data: ImageCollection,
    classes: list[int],
    sides: Sequence[Side],
    needed: Needed,
    rng: np.random.Generator,
    name: str,
) -> Task:
    """Return a task of support, query and perhaps validation images without a group on two sides.

    Args:
        data: The images; their groups are known.
        classes: The classes of the task.
        sides: Support, query and perhaps validation.
        needed: Name of each side and its images per class.
        rng: Deals groups where the order of the images leaves too few.
        name: What the task is called, such as "episode 3".

    Raises:
        DtrapError: There is no such draw.
    """
    assert data.group_of is not None
    found = draw_apart(sides, data.group_of, rng)
    if found is None:
        raise too_few(data, classes, needed, f"{name}: ")
    validation = found.chosen[2] if len(sides) > 2 else None
    return Task(classes, found.chosen[0], found.chosen[1], found.rest[0], found.rest[1], validation)


def too_few(data: ImageCollection, labels: Iterable[int], needed: Needed, place: str = "") -> DtrapError:
    """Return the error for classes whose groups cannot be kept apart, with their numbers."""
    assert data.group_of is not None
    cases = []
    for label in labels:
        sizes = Counter(data.group_of[data.positions[label]].tolist())
        images = len(data.positions[label])
        cases.append(
            f"'{data.index.class_names[label]}' has {images:,} images in {len(sizes):,} groups, the largest of "
            f"{max(sizes.values(), default=0):,}"
        )
    numbers = " + ".join(f"{count} {name}" for name, count in needed if count)
    options = " or ".join(f"--data.{_OPTIONS.get(name, name)}" for name, count in needed if count and name in _OPTIONS)
    return DtrapError(
        f"{data.title}: {place}too few images without a group on two sides: {listing(cases, 3)}. Needed of each "
        f"class: {numbers}, of different groups.\nLower {options}, leave such classes out with --data.small_classes "
        f"skip, or draw without groups: {without_groups(data)}."
    )


def without_groups(data: ImageCollection) -> str:
    """Return how to draw without groups."""
    if not hasattr(data, "group"):
        return f"without `groups` in the ImageIndex of {type(data).__name__}.scan"
    return f"leave out {OPTION}" if data.group else f"{OPTION} ''"


_OPTIONS = {"support": "shot", "training": "shot", "query": "query", "validation": "validation_shots"}


def note_split_groups(data: ImageCollection, tasks: Iterable[Task], unit: str) -> str:
    """Return how many groups are on two sides of tasks where nothing keeps them together; empty for none.

    Args:
        data: The images.
        tasks: The tasks.
        unit: What a task is counted as, such as "episode".
    """
    unused = data.unused_groups
    if unused is None:
        return ""
    count, split, queries, all_ = 0, 0, 0, 0
    for task in tasks:
        count += 1
        support = {unused.of[image] for images in task.support for image in images} - {""}
        tested = [unused.of[image] for images in task.query for image in images]
        shared = [group for group in tested if group in support]
        split += bool(shared)
        queries, all_ = queries + len(shared), all_ + len(tested)
    if not split:
        return ""
    one_task = not getattr(data, "fixed_numbers", True)
    sides, tests = ("the training and the test images", "test images") if one_task else ("support and query", "queries")
    tasks_ = f"in {split:,} of {count:,} {unit}{'s' * (count > 1)} " if count > 1 else ""
    return (
        f"{tasks_}a {unused.unit} is in both {sides} ({queries:,} of {all_:,} {tests}); {OPTION} {unused.option} keeps "
        "them apart"
    )
