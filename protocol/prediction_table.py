"""The table of predictions: label, confidence and runner-up of each image, and the probability of every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from ..errors import DtrapError
from ..files import no_formula
from .rejection import Threshold, similarities

DECIMALS = 6
UNSURE, REJECTED = "unsure", "rejected"


@dataclass(frozen=True)
class Predictions:
    """What the scores of images say.

    Attributes:
        paths: Name of each image.
        classes: Number of the most probable class of each image.
        labels: Its name, or what stands for an image that is unsure or rejected.
        probabilities: [N, W], rounded to six decimals as in the CSV.
        unsure: Whether the label is withheld because the confidence is too low.
        rejected: Whether it is withheld because the image is like none of the classes.
        frame: The table.
    """

    paths: list[str]
    classes: np.ndarray
    labels: list[str]
    probabilities: np.ndarray
    unsure: np.ndarray
    rejected: np.ndarray
    frame: pd.DataFrame


def free_name(name: str, class_names: Sequence[str]) -> str:
    """Return a label that no class has: the name, with as many `_` as are needed."""
    taken = {each.casefold() for each in class_names}
    while name.casefold() in taken:
        name += "_"
    return name


def check_unsure(unsure: float | None) -> None:
    """Raise a DtrapError unless this is None or a probability."""
    if unsure is not None and not 0 <= unsure <= 1:  # also NaN
        raise DtrapError(f"unsure is {unsure}; expected a confidence from 0 to 1, such as 0.6.")


def predictions_of(
    paths: Sequence[str],
    scores: Tensor,
    class_names: Sequence[str],
    logit_scale: float,
    *,
    temperature: float | None = None,
    unsure: float | None = None,
    threshold: Threshold | None = None,
) -> Predictions:
    """Return the predictions of scores.

    Args:
        paths: Names of the N images.
        scores: [N, 1, W] in float64, or [N, 2, W] with those without the tuner.
        class_names: The W names.
        logit_scale: tau.
        temperature: What the scores are divided by; None if none was fitted.
        unsure: Label what has a lower confidence as unsure.
        threshold: Label what has a lower similarity as rejected.
    """
    tuned = scores[:, 0]
    classes = tuned.argmax(dim=1).numpy()  # before the division, which may make two scores equal
    probabilities = (tuned / (temperature or 1.0)).softmax(dim=1).numpy().round(DECIMALS)
    order = tuned.argsort(dim=1, descending=True, stable=True).numpy()
    rows = np.arange(len(paths))
    highest = probabilities[rows, classes]
    is_unsure = np.zeros(len(paths), dtype=bool) if unsure is None else highest < unsure
    likely = [class_names[number] for number in classes]
    kind = "score" if temperature is None else "confidence"
    columns: list[tuple[str, object]] = [("path", list(paths)), ("label", likely), (kind, highest)]
    if len(class_names) > 1:
        second = order[:, 1] if len(paths) else np.zeros(0, dtype=int)
        columns.append(("runner_up", [class_names[number] for number in second]))
        columns.append((f"runner_up_{kind}", probabilities[rows, second]))
    rejected = np.zeros(len(paths), dtype=bool)
    if threshold is not None:
        similarity = similarities(scores[:, 0 if threshold.kind == "tuned" else 1], logit_scale).numpy()
        rejected = similarity < threshold.value
        columns.append(("similarity", similarity.round(DECIMALS)))
    is_unsure &= ~rejected
    labels = list(likely)
    if unsure is not None or threshold is not None:
        columns.insert(2, ("most_likely", likely))
        for withheld, name in ((is_unsure, UNSURE), (rejected, REJECTED)):
            shown = free_name(name, class_names)
            labels = [shown if hidden else label for hidden, label in zip(withheld, labels, strict=True)]
        columns[1] = ("label", labels)
    names = [name for name, _ in columns]
    content = [*(_column(values) for _, values in columns), *(pd.Series(column) for column in probabilities.T)]
    frame = pd.concat(content, axis=1)
    frame.columns = _names([*names, *class_columns(class_names, names)])
    return Predictions(list(paths), classes, labels, probabilities, is_unsure, rejected, frame)


def _column(values: object) -> pd.Series[Any]:
    """Return a column; names that are not UTF-8 cannot be pandas' own strings."""
    try:
        return pd.Series(values)  # type: ignore[call-overload, no-any-return]
    except UnicodeEncodeError:
        return pd.Series(values, dtype=object)  # type: ignore[call-overload, no-any-return]


def _names(names: list[str]) -> pd.Index[Any]:
    try:
        return pd.Index(names)
    except UnicodeEncodeError:
        return pd.Index(names, dtype=object)


def class_columns(class_names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the column of each class: its name, with " (class)" where another column has that name."""
    taken = {*others, "score", "confidence", "runner_up", "most_likely", "similarity"}
    return [f"{name} (class)" if name in taken else name for name in class_names]


def csv_of(frame: pd.DataFrame, *, escape_formulas: bool = True) -> str:
    """Return the table as CSV.

    Args:
        frame: The table.
        escape_formulas: Whether to put ' before names that a spreadsheet would compute.
    """
    if escape_formulas:
        named = [name for name in ("path", "label", "most_likely", "runner_up") if name in frame]
        texts = {name: _column([no_formula(text) for text in frame[name]]) for name in named}
        frame = frame.assign(**texts)
        frame.columns = _names([no_formula(name) for name in frame.columns])
    return frame.to_csv(index=False, float_format=f"%.{DECIMALS}f", lineterminator="\n")
