"""Means over episodes and their 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval, mean ± half_width.

    Attributes:
        mean: Mean of the values.
        half_width: Half width of the interval; None for a single value.
        count: Number of values.
    """

    mean: float
    half_width: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.half_width is None else f"{self.mean:.1f} ± {self.half_width:.1f}"


def mean_interval(values: Iterable[float]) -> Interval:
    """Mean and 95% interval by Student's t, with the standard deviation over n - 1.

    Raises:
        ValueError: There are no values.
    """
    numbers = np.asarray(list(values), dtype=np.float64)
    count = len(numbers)
    if count == 0:
        raise ValueError("a mean needs at least one value, got none")
    mean = float(numbers.mean())
    if count == 1:
        return Interval(mean, None, 1)
    # scipy takes longer to import than the rest of a report; a single value does not need it.
    from scipy import stats  # type: ignore[import-untyped]

    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, df=count - 1))
    return Interval(mean, quantile * float(numbers.std(ddof=1)) / math.sqrt(count), count)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Interval:
    """Mean of first - second over the episodes that both have, with its 95% interval.

    Args:
        first: Value of each episode, by the episode's number.
        second: The same for another method.

    Raises:
        ValueError: No episode is in both.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError("a paired difference needs at least one common episode, got none")
    return mean_interval(first[episode] - second[episode] for episode in common)
