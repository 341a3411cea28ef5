"""Means over episodes, shares of test images, and their 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..lightning_modules.exact_interval import CONFIDENCE, exact_interval

STUDENT, BINOMIAL = "Student's t", "exact binomial"
CORRECTED = "Nadeau and Bengio's corrected resampled t"
CORRECTED_SHORT = "corrected resampled t"
TOO_FEW = (2, 3)  # numbers of values from which a standard deviation says little


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval.

    Attributes:
        mean: Mean of the values.
        half_width: Half width of Student's interval, mean ± half_width; 0 for identical values, None for one value.
        count: Number of values (episodes, seeds or pairs).
        low: Lower end of the interval; None without one.
        high: Upper end of the interval; None without one.
        kind: "Student's t" over the values, "exact binomial" over the test images of one task, "Nadeau and Bengio's
            corrected resampled t" over repeats of held-out images, or None.
        images: Number of test images of all values together; None if unknown. Not compared.
    """

    mean: float
    half_width: float | None
    count: int
    low: float | None = None
    high: float | None = None
    kind: str | None = None
    images: int | None = field(default=None, compare=False)

    @property
    def identical(self) -> bool:
        """Whether these are several values that are all the same, which have no interval."""
        return self.count > 1 and self.half_width == 0

    @property
    def too_few(self) -> bool:
        """Whether the interval rests on two or three values only."""
        return self.count in TOO_FEW and not self.identical

    def __str__(self) -> str:
        return format(self, ".1f")

    def __format__(self, numbers: str) -> str:
        """Return mean, interval and what they rest on; `numbers` is how numbers are written, such as ".3f"."""
        numbers = numbers or ".1f"
        mean, half_width, low, high = (
            "" if value is None else format(value, numbers)
            for value in (self.mean, self.half_width, self.low, self.high)
        )
        tested = "" if self.images is None else f", {self.images:,} test image{'' if self.images == 1 else 's'}"
        if self.kind == BINOMIAL:
            return f"{mean} (95 % {low} to {high}, {BINOMIAL}{tested})"
        if self.count == 1:
            return f"{mean} (1 value{tested})"
        if self.identical:
            return f"{mean} (identical in {self.count}{tested})"
        few = ", too few" if self.too_few else ""
        return f"{mean} ± {half_width} (95 %, {self.kind or STUDENT} over {self.count}{few}{tested})"


def mean_interval(values: Iterable[float], resampled: float | None = None) -> Interval:
    """Mean and 95% interval by Student's t, with the standard deviation over n - 1.

    Repeats that hold out other images of the same data depend on each other, and Student's interval would be too
    narrow. Theirs is the corrected resampled t interval of Nadeau and Bengio, "Inference for the generalization error",
    Machine Learning 52 (2003): the variance of the mean of J values is (1/J + n_test/n_train) s² instead of s²/J, with
    J - 1 degrees of freedom.

    Args:
        values: One value for each episode, seed or repeat.
        resampled: n_test/n_train, if the values are of repeats; see `resampling_ratio`.

    Raises:
        ValueError: There are no values.
    """
    import numpy as np  # here, as scipy below: the help of a report needs neither

    numbers = np.asarray(list(values), dtype=np.float64)
    count = len(numbers)
    if count == 0:
        raise ValueError("a mean needs at least one value, got none")
    if count == 1 or numbers.min() == numbers.max():  # the mean of equal values may differ from them in the last bit
        return Interval(float(numbers[0]), 0.0 if count > 1 else None, count)
    mean = float(numbers.mean())
    factor = 1 / math.sqrt(count) if resampled is None else math.sqrt(1 / count + resampled)
    half_width = student_quantile(count - 1) * float(numbers.std(ddof=1)) * factor
    kind = STUDENT if resampled is None else CORRECTED
    return Interval(mean, half_width, count, mean - half_width, mean + half_width, kind)


def resampling_ratio(rows: Iterable[Mapping[str, Any]]) -> float | None:
    """Return n_test/n_train of rows of repeats, the mean over them; None if no row is one of a repeat.

    A single held-out run has no mark of a repeat; where more repeats were added to it, its numbers of images count.
    """
    ratios, marked = [], False
    for row in rows:
        marked = marked or row.get("resampled") is not None
        if row.get("accuracy") is not None and row.get("test_images") and row.get("support_images"):
            ratios.append(row["test_images"] / row["support_images"])
    return sum(ratios) / len(ratios) if marked and ratios else None


@cache
def student_quantile(freedom: float) -> float:
    """Return the quantile of Student's t that half a 95% interval is, for a number of degrees of freedom."""
    # scipy.stats calls the same function and takes half a second to import; a single value needs neither.
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def binomial_interval(right: int, images: int) -> Interval:
    """Accuracy in percent on the test images of one task, with the exact interval of Clopper and Pearson.

    Raises:
        ValueError: There are no test images, or more right ones than images.
    """
    low, high = exact_interval(right, images)
    return Interval(100.0 * right / images, None, 1, low, high, BINOMIAL, images)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], resampled: float | None = None
) -> Interval:
    """Mean of first - second over the episodes that both have, with its 95% interval.

    Args:
        first: Value of each episode, by the episode's number.
        second: The same for another method.
        resampled: n_test/n_train, if the episodes are repeats; see `mean_interval`.

    Raises:
        ValueError: No episode is in both.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError("a paired difference needs at least one common episode, got none")
    return mean_interval((first[episode] - second[episode] for episode in common), resampled)
