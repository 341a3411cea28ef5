"""Say which images of a user are there more than once: in several splits, in several classes, or within a class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.console import Console

from ..copies import find_copies
from ..findings import Finding, relative
from ..index import SPLITS, ImageIndex
from .fingerprints import Fingerprint, bar
from .near_copies import MOST_PAIRS, near_copies

# Every image is compared with every other one: 20 minutes for this number.
MOST_COMPARED = 200_000
SAME_FILE = "the same content"


def copy_findings(
    index: ImageIndex, root: Path, images: Sequence[Fingerprint | None], console: Console
) -> tuple[list[Finding], list[Finding]]:
    """Return faults and notes: copies in several splits or classes are faults, those within a class are notes.

    Args:
        index: The images.
        root: Folder that paths are shown from.
        images: What is kept of each; empty where they were not decoded, so that only files with the same content are
            found.
        console: Where a bar is shown.
    """
    pairs, notes = _find_pairs(index, images, console)
    across: dict[str, list[str]] = {"splits": [], "classes": [], "": []}
    files: dict[str, list[tuple[str, str]]] = {kind: [] for kind in across}
    for (first, second), how in sorted(pairs.items()):
        names = [relative(index.paths[position], root) for position in (first, second)]
        kinds = [
            *(["splits"] if index.splits is not None and index.splits[first] != index.splits[second] else []),
            *(["classes"] if index.labels[first] != index.labels[second] else []),
        ]
        for kind in kinds or [""]:
            across[kind].append(f"{names[0]} and {names[1]} ({how})")
            files[kind].append((names[0], names[1]))
    splits, classes, within = (
        [_finding(kind, cases, files[kind], index.splits is not None)] if cases else []
        for kind, cases in across.items()
    )
    return [*splits, *classes], [*notes, *within]


def _finding(kind: str, cases: Sequence[str], files: Sequence[tuple[str, str]], has_splits: bool) -> Finding:
    """Return the finding for pairs of images."""
    many = len(cases) != 1
    pairs = f"{len(cases):,} pair{'s' * many} of images {'show' if many else 'shows'} the same"
    text = {
        "splits": f"{pairs} in different splits, so that an accuracy is too high",
        "classes": f"{pairs} in different classes",
        "": f"{pairs} within a class{'' if has_splits else ', so held-out images may have copies in the training'}",
    }[kind]
    return Finding(text, cases, files)


def _find_pairs(
    index: ImageIndex, images: Sequence[Fingerprint | None], console: Console
) -> tuple[dict[tuple[int, int], str], list[Finding]]:
    """Return how the images of each pair are alike, and notes on what was not looked for.

    Of several images that are the same, each is paired with the first one, which is in the training split if one is.
    """
    ranks = [SPLITS.index(split) for split in index.splits] if index.splits is not None else [0] * len(index.paths)
    order = sorted(range(len(index.paths)), key=lambda position: (ranks[position], position))
    notes, pairs = [], {}
    if len(images) > MOST_COMPARED:
        text = f"copies that were resized, compressed again or mirrored are not looked for among {len(images):,} images"
        notes.append(Finding(f"{text}, only files with the same content"))
    elif images:
        with bar("comparing", len(order), console) as progress:
            found = near_copies(
                [images[position] for position in order],
                lambda done: progress.update(progress.task_ids[0], completed=done),
            )
            for one, other, bits, mirrored in islice(found, MOST_PAIRS):
                how = f"{'mirrored, ' * mirrored}{bits} of 256 bits differ"
                pairs[order[one], order[other]] = how
        if len(pairs) == MOST_PAIRS:
            notes.append(Finding(f"more than {MOST_PAIRS:,} pairs are alike; only these are listed"))
    positions = {index.paths[position]: position for position in order}
    for group in find_copies(positions):
        first, *others = (positions[path] for path in group)
        pairs |= {(first, other): SAME_FILE for other in others}
    return pairs, notes
