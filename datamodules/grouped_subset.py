"""The images of the all-way protocol where no group of images may be on two sides of training, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import DtrapError
from .collection import ImageCollection
from .grouped_draws import too_few, without_groups
from .groups import Positions, Side, can_be_apart, draw_apart


def split_apart(
    data: ImageCollection,
    pools: Sequence[Positions],
    counts: tuple[int, int],
    rng: np.random.Generator,
    drop_unreadable: Callable[[Positions], Positions],
) -> list[Positions]:
    """Return training, validation and test images of each class without a group on two sides.

    As without groups, a class that has too few images gives them to training first, then to validation. A class with
    more images than these needs keeps at least one to test on. Images of a training or validation group that are not
    drawn are not used.

    Args:
        data: The images; their groups are known.
        pools: Training, validation and test images of each class, in the order in which they are drawn.
        counts: Training and validation images of each class.
        rng: Deals groups where the order of the images leaves too few.
        drop_unreadable: Returns images of each class without those that cannot be read.

    Raises:
        DtrapError: There is no such draw.
    """
    assert data.group_of is not None
    while True:
        sides = _sides(pools, counts)
        found = draw_apart(sides, data.group_of, rng)
        if found is None:
            raise _error(data, sides, counts)
        drawn = [label for side in found.chosen[:2] for label in side]
        lost = {p for images in drawn for p in images}.difference(*(map(set, drop_unreadable(drawn))))
        if not lost:
            break
        left = {id(order): [p for p in order if p not in lost] for pool in pools for order in pool}
        pools = [[left[id(order)] for order in pool] for pool in pools]
    train, val = found.chosen[:2]
    taken = {int(data.group_of[p]) for side in (train, val) for images in side for p in images}
    test = [sorted(p for p in order if int(data.group_of[p]) not in taken) for order in pools[2]]
    used = {p for side in (train, val, test) for images in side for p in images}
    rest = {p for order in pools[2] for p in order} - used
    if rest:
        data.warn_once(
            f"{len(rest):,} images are not tested on, because they share a group with images of the training or "
            "validation"
        )
    return [train, val, test]


def _sides(pools: Sequence[Positions], counts: tuple[int, int]) -> list[Side]:
    """Return training, validation and test with what each class can give; a pool may serve several of them."""
    needed = []
    for train, val, test in zip(*pools, strict=True):
        trained = min(counts[0], len(train))
        validated = min(counts[1], len(val) - trained * (val is train))
        tested = min(1, len(test) - (trained + validated) * (test is train))
        needed.append((trained, validated, tested))
    return [Side(pool, list(count)) for pool, count in zip(pools, zip(*needed, strict=True), strict=True)]


def _error(data: ImageCollection, sides: Sequence[Side], counts: tuple[int, int]) -> DtrapError:
    """Return the error for classes whose groups cannot be kept apart; those that cannot be drawn alone first."""
    assert data.group_of is not None
    bad = [label for label, fits in enumerate(can_be_apart(sides, data.group_of)) if not fits]
    needed = (("training", counts[0]), ("validation", counts[1]), ("test", 1))
    return too_few(data, bad or range(len(data.index.class_names)), needed)


def check_apart(data: ImageCollection, train: Positions, val: Positions, test: Positions, file: str) -> Positions:
    """Return the test images that share no group with training and validation images of a subset file.

    Raises:
        DtrapError: Training and validation images share a group.
    """
    assert data.group_of is not None
    assert data.index.groups is not None
    trained, validated = ({int(data.group_of[p]) for images in side for p in images} for side in (train, val))
    both = trained & validated
    if both:
        position = next(p for images in val for p in images if int(data.group_of[p]) in both)
        raise DtrapError(
            f"subset {file}: its training and validation images share {len(both)} group(s), for example "
            f"'{data.index.groups[position]}' ({data.index.relative(position)}). Draw without the file, or without "
            f"groups: {without_groups(data)}."
        )
    kept = [[p for p in images if int(data.group_of[p]) not in trained | validated] for images in test]
    lost = sum(map(len, test)) - sum(map(len, kept))
    if lost:
        data.warn_once(f"{lost:,} test images left out, because they share a group with images of {file}")
    return kept
