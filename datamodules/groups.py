"""Images that belong together, such as those of a patient, and draws that put no such group on two sides of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

Positions = list[list[int]]


@dataclass(frozen=True)
class UnusedGroups:
    """Groups that a data set knows and that its draws do not keep together, because no one asked for it.

    Attributes:
        of: Group of each image of the index; an image with "" is a group of its own.
        option: Value of `--data.group` that keeps them together.
        unit: What a group is, such as "lesion".
    """

    of: Sequence[str]
    option: str
    unit: str


@dataclass(frozen=True)
class Side:
    """One side of a split, such as support or query.

    Attributes:
        orders: Images of each class that it may have, in the order in which they are taken.
        counts: How many of them it needs.
    """

    orders: Positions
    counts: Sequence[int]


@dataclass(frozen=True)
class Apart:
    """What the sides of a split have.

    Attributes:
        chosen: The images of each side and class, as many as were needed.
        rest: Its further images, in the order in which they are taken: of groups that no other side may use.
    """

    chosen: list[Positions]
    rest: list[Positions]


def numbered(groups: Sequence[str]) -> np.ndarray:
    """Return a number for each image; images with the same number are one group, an image with "" is its own."""
    numbers: dict[str, int] = {}
    return np.array(
        [numbers.setdefault(group or f"\0{position}", len(numbers)) for position, group in enumerate(groups)]
    )


def draw_apart(sides: Sequence[Side], group_of: np.ndarray, rng: np.random.Generator) -> Apart | None:
    """Draw the images of each side so that no group is on two sides; None if there is no such draw.

    Each side in turn takes the next images whose groups no earlier side has, as if there were no groups. Where that
    leaves a later side too few, the groups are dealt to the sides at random, among all ways that leave enough to each.

    Args:
        sides: The sides of the split.
        group_of: Number of the group of each image of the index.
        rng: Deals the groups that are not decided by the order of the images.
    """
    homes = _homes(sides, group_of)
    owners = _in_turn(sides, group_of)
    if owners is None:
        owners = _dealt(sides, group_of, homes, rng)
    if owners is None:
        return None
    _share_rest(owners, sides, group_of, homes, rng)
    chosen, rest = [], []
    for number, side in enumerate(sides):
        arrays = [np.asarray(order, dtype=np.int64) for order in side.orders]
        own = [order[owners[group_of[order]] == number].tolist() for order in arrays]
        chosen.append([images[:count] for images, count in zip(own, side.counts, strict=True)])
        rest.append([images[count:] for images, count in zip(own, side.counts, strict=True)])
    return Apart(chosen, rest)


def _share_rest(
    owners: np.ndarray, sides: Sequence[Side], group_of: np.ndarray, homes: np.ndarray, rng: np.random.Generator
) -> None:
    """Give groups that no side needs to the sides in turn, class by class, to replace unreadable images.

    The side that has the fewest images to spare comes first.
    """
    for label in range(len(sides[0].orders)):
        arrays = [np.asarray(side.orders[label], dtype=np.int64) for side in sides]
        found = np.unique(group_of[np.concatenate(arrays)])
        free = rng.permutation(found[owners[found] < 0])
        if not len(free):
            continue
        spare = [
            int((owners[group_of[order]] == number).sum()) - side.counts[label]
            for number, (order, side) in enumerate(zip(arrays, sides, strict=True))
        ]
        turn = np.argsort(spare, kind="stable")[np.arange(len(free)) % len(sides)]
        able = homes[turn, free]
        owners[free] = np.where(able, turn, homes[:, free].argmax(0))


def _homes(sides: Sequence[Side], group_of: np.ndarray) -> np.ndarray:
    """Return which side may have images of which group, [sides, groups]."""
    homes = np.zeros((len(sides), int(group_of.max(initial=-1)) + 1), dtype=bool)
    for number, side in enumerate(sides):
        for order in side.orders:
            homes[number, group_of[np.asarray(order, dtype=np.int64)]] = True
    return homes


def _in_turn(sides: Sequence[Side], group_of: np.ndarray) -> np.ndarray | None:
    """Return the side of each group, -1 where it is not used, if each side takes the next free images; None if not."""
    owners = np.full(int(group_of.max(initial=-1)) + 1, -1)
    for number, side in enumerate(sides):
        for order, count in zip(side.orders, side.counts, strict=True):
            free = (group for image in order if owners[group := group_of[image]] in (-1, number))
            taken = list(islice(free, count))
            if len(taken) < count:
                return None
            owners[taken] = number
    return owners


def _dealt(
    sides: Sequence[Side], group_of: np.ndarray, homes: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """Return the side of each group, at random among all ways that leave enough images to every side and class."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes a third of a second
    from scipy.sparse import coo_array

    side_of, group = np.nonzero(homes)
    if not len(group):
        return None
    column = np.zeros(homes.shape, dtype=np.int64)
    column[side_of, group] = np.arange(len(group))
    # One row for each class of each side, then one for each group, which is on one side.
    used, number_of = np.unique(group, return_inverse=True)
    needed = [count for side in sides for count in side.counts]
    rows, columns = [number_of + len(needed)], [np.arange(len(group))]
    sizes = [np.ones(len(group), dtype=np.int64)]
    for number, side in enumerate(sides):
        for label, order in enumerate(side.orders):
            own, size = np.unique(group_of[np.asarray(order, dtype=np.int64)], return_counts=True)
            rows.append(np.full(len(own), number * len(side.orders) + label))
            columns.append(column[number, own])
            sizes.append(size)
    places = (np.concatenate(rows), np.concatenate(columns))
    shape = (len(needed) + len(used), len(group))
    matrix = coo_array((np.concatenate(sizes), places), shape=shape).tocsc()
    least, most = [*needed, *[1] * len(used)], [*[np.inf] * len(needed), *[1] * len(used)]
    # Rewards are large random integers, so that one way is better than all others and every solver finds it.
    found = milp(
        -rng.integers(1, 10**6, len(group)).astype(float),
        integrality=np.ones(len(group), dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, least, most),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    owners = np.full(homes.shape[1], -1)
    dealt = found.x > 0.5
    owners[group[dealt]] = side_of[dealt]
    return owners


def can_be_apart(sides: Sequence[Side], group_of: np.ndarray) -> list[bool]:
    """Return for each class whether its images can be drawn, whatever the other classes need."""
    alone = (
        [Side([order], [count]) for order, count in zip(orders, counts, strict=True)]
        for orders, counts in zip(
            zip(*(side.orders for side in sides), strict=True),
            zip(*(side.counts for side in sides), strict=True),
            strict=True,
        )
    )
    return [draw_apart(one, group_of, np.random.default_rng(0)) is not None for one in alone]
