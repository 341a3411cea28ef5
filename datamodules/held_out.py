"""Choose which images of each class are held out for testing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .index import listing

HELD_OUT = 0.2  # of repeats without a share


def hold_out(images: Sequence[np.ndarray], share: float, rng: np.random.Generator) -> list[list[int]]:
    """Return the images of each class that are held out: the share, rounded, and never all of them.

    Args:
        images: Positions of the images of each class.
        share: Share of each class in (0, 1).
        rng: Draws them.
    """
    chosen = []
    for positions in images:
        order = rng.permutation(positions)
        count = min(round(share * len(order)), len(order) - 1)
        chosen.append(np.sort(order[:count]).tolist())
    return chosen


def hold_out_groups(
    images: Sequence[np.ndarray], groups: Sequence[str], share: float, rng: np.random.Generator
) -> list[list[int]]:
    """Return the images of each class that are held out, where no group may be on both sides.

    Groups come in a random order. One is held out if that brings the numbers of its classes nearer to the share and
    leaves each class an image to train on. A class of which none was taken then gives its smallest group, if it can.

    Args:
        images: Positions of the images of each class.
        groups: Group of each position; "" is a group of its own.
        share: Share of each class in (0, 1).
        rng: Draws the order.
    """
    members: dict[str | int, np.ndarray] = {}  # of each group: its images in each class
    for label, positions in enumerate(images):
        for position in positions.tolist():
            counts = members.setdefault(groups[position] or position, np.zeros(len(images), dtype=np.int64))
            counts[label] += 1
    total = np.array([len(positions) for positions in images])
    wanted = np.array([min(round(share * count), count - 1) for count in total.tolist()])
    taken = np.zeros_like(total)
    held: set[str | int] = set()
    keys = list(members)
    order = [keys[number] for number in rng.permutation(len(keys))]
    for key in order:
        after = taken + members[key]
        if (after < total).all() and np.abs(after - wanted).sum() < np.abs(taken - wanted).sum():
            taken, held = after, held | {key}
    for label in np.flatnonzero((taken == 0) & (wanted > 0)).tolist():
        able = [key for key in order if members[key][label] and (taken + members[key] < total).all()]
        if able and not taken[label]:
            smallest = min(able, key=lambda key: int(members[key].sum()))
            taken, held = taken + members[smallest], held | {smallest}
    return [
        [position for position in positions.tolist() if (groups[position] or position) in held] for positions in images
    ]


def groups_on_both_sides(
    support: Sequence[Sequence[int]], other: Sequence[Sequence[int]], groups: Sequence[str]
) -> str:
    """Return the groups with images on both sides, as text; empty where there is none."""
    first, second = ({groups[p] for positions in side for p in positions} - {""} for side in (support, other))
    both = sorted(first & second)
    return f"{len(both)} of {len(first | second)} groups ({listing(both, 3)})" if both else ""
