"""Images that are there twice: in two classes, or on both sides of training and test."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..errors import DtrapError
from .copies import find_copies
from .index import ImageIndex, listing


def without_copies(
    index: ImageIndex, support: int, root: Path, others: str, *, leave_out: bool
) -> tuple[ImageIndex, frozenset[int]]:
    """Note images that are there twice; leave out those that are also support images if wanted.

    Args:
        index: The images, those to train on first.
        support: Number of these.
        root: What paths in notes are relative to.
        others: What the other images are called in messages, such as "query_root folder".
        leave_out: Whether to leave out those of the other images that are also to train on.

    Returns:
        The index with notes, and the positions of copies that were not left out.

    Raises:
        DtrapError: None of the other images would be left.
    """
    positions = {path: position for position, path in enumerate(index.paths)}
    leaked: dict[str, str] = {}
    twice: list[str] = []
    classes: list[str] = []
    for group in find_copies(index.paths):
        own = [path for path in group if positions[path] < support]
        leaked |= {path: own[0] for path in group[len(own) :] if own}
        pair = " and ".join(os.path.relpath(path, root) for path in group[:2])
        several = len({index.labels[positions[path]] for path in group}) > 1
        (classes if several else twice).append(pair)
    all_ = len(index.paths) - support
    notes = [
        *([f"the same image is in several classes: {listing(classes, 3)}"] if classes else []),
        *([f"the same image is there twice: {listing(twice, 3)}"] if twice and not all_ else []),
    ]
    if leaked and not leave_out:
        pairs = listing([f"{path} is {other}" for path, other in leaked.items()], 3)
        where = "also under root" if index.splits is None else "also training images"
        text = (
            f"{len(leaked):,} of the {all_:,} images of {others} are {where}, so an accuracy on them is too "
            f"high: {pairs}. --data.bad_images skip leaves them out"
        )
        return replace(index, notes=(*index.notes, *notes, text)), frozenset(positions[path] for path in leaked)
    if leaked and len(leaked) == all_:
        raise DtrapError(
            f"All {len(leaked)} images of {others} {os.path.commonpath(list(leaked))} are images of root {root} (the "
            "same content). Give other images, or keep a share for testing: --data.held_out 0.2 without query_root."
        )
    kept = [position for position, path in enumerate(index.paths) if path not in leaked]
    left = replace(
        index,
        paths=[index.paths[position] for position in kept],
        labels=[index.labels[position] for position in kept],
        splits=None if index.splits is None else [index.splits[position] for position in kept],
        groups=None if index.groups is None else [index.groups[position] for position in kept],
        notes=(*index.notes, *notes),
        faults=(*index.faults, *((path, f"the same image as {other}") for path, other in leaked.items())),
    )
    return left, frozenset()
