"""The accuracy of predictions on images whose classes are known: from the names of folders, or from a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor

from ..datamodules.given_images import GivenImage
from ..datamodules.index import listing, normal
from .claims import counted
from .prediction_table import Predictions
from .statistics import binomial_interval
from .temperature import confidence_measures


def known_classes(
    images: Sequence[GivenImage], class_names: Sequence[str], names_of_folders: Mapping[str, str] | None = None
) -> list[int | None]:
    """Return the class that each image is known to show; None where nothing says it.

    A table's label counts first. Otherwise it is the nearest folder above the image that has the name of a class, up to
    the folder that was given; of an image that was given itself, the folder that it is in. Upper and lower case and `_`
    for a blank make no difference unless classes differ by them.

    Args:
        images: The images.
        class_names: The classes.
        names_of_folders: Class names of folders that are called otherwise, as in the training.
    """
    numbers = _numbers(class_names)
    for folder, name in (names_of_folders or {}).items():
        if name in class_names:
            numbers.setdefault(normal(folder), list(class_names).index(name))
    return [next((numbers[name] for name in _names(image) if name in numbers), None) for image in images]


def _numbers(class_names: Sequence[str]) -> dict[str, int]:
    """Return the number of each class by its spellings."""
    alike = Counter(_alike(name) for name in class_names)
    numbers = {normal(name): number for number, name in enumerate(class_names)}
    for number, name in enumerate(class_names):
        if alike[_alike(name)] == 1:
            numbers.setdefault(_alike(name), number)
    return numbers


def _alike(name: str) -> str:
    return "\0" + " ".join(normal(name).casefold().replace("_", " ").split())  # never equal to a name itself


def _names(image: GivenImage) -> Iterator[str]:
    """Yield what may name the class of an image, the first that does counts."""
    if image.label:
        names = [image.label]
    elif not isinstance(image.source, str):
        return
    elif not image.folder:
        names = [os.path.basename(os.path.dirname(os.path.abspath(image.source)))]
    else:
        inside = PurePath(os.path.relpath(os.path.dirname(image.source), image.folder))
        own = os.path.basename(os.path.abspath(image.folder))
        names = [*(part for part in reversed(inside.parts) if part not in (os.curdir, os.pardir)), own]
    for name in names:
        yield normal(name)
        yield _alike(name)


def accuracy_lines(
    found: Predictions,
    known: Sequence[int | None],
    class_names: Sequence[str],
    scores: Tensor,
    temperature: float | None,
) -> list[str]:
    """Return what the images with known classes say of the predictions; no line if there are none.

    Args:
        found: The predictions.
        known: The class of each image.
        class_names: The classes.
        scores: Logits [N, W] of the images.
        temperature: What they are divided by; None for 1.
    """
    rows = np.array([row for row, label in enumerate(known) if label is not None], dtype=int)
    if not len(rows):
        return []
    labels = np.array([known[row] for row in rows], dtype=int)
    right = found.classes[rows] == labels
    others = len(known) - len(rows)
    without = "" if not others else f"; {counted(others, 'image')} without a known class not counted"
    share = binomial_interval(int(right.sum()), len(rows))
    interval = f"95 % {share.low:.1f} to {share.high:.1f}, exact binomial"
    hits = f"{int(right.sum())} of {counted(len(rows), 'image')} right by folder or label"
    lines = [f"Accuracy: {share.mean:.1f} % ({interval}), {hits}{without}"]
    for number, name in enumerate(class_names):
        own = right[labels == number]
        if len(own):
            lines.append(f"  {name}: {int(own.sum())} of {len(own)} right ({100 * own.mean():.1f} %)")
    untested = [name for number, name in enumerate(class_names) if number not in labels]
    if untested:
        lines.append(f"  no image of {listing(untested)}")
    withheld = (found.unsure | found.rejected)[rows]
    if withheld.any():
        kept = right[~withheld]
        shown = f", of which {int(kept.sum())} are right ({100 * kept.mean():.1f} %)" if len(kept) else ""
        lines.append(f"  labeled: {len(kept)} of {len(rows)}{shown}")
    return [*lines, _calibration(scores[torch.from_numpy(rows)], torch.from_numpy(labels), temperature)]


def _calibration(scores: Tensor, labels: Tensor, temperature: float | None) -> str:
    """Return a line on how far the confidences are from the accuracy."""
    before = confidence_measures(scores, labels)["calibration_error"]
    if temperature is None:
        return f"  calibration error of the scores: {before:.1f} %"
    after = confidence_measures(scores / temperature, labels)["calibration_error"]
    return f"  calibration error of the confidences: {after:.1f} % (without the temperature {before:.1f} %)"
