"""Means over episodes and their 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean of `count` values; the 95% interval is mean ± half_width, None where there is one value only."""

    mean: float
    half_width: float | None
    count: int


def mean_interval(values: Iterable[float]) -> Interval:
    """Mean and 95% interval by Student's t, with the standard deviation over n - 1.

    Raises:
        ValueError: there are no values.
    """
    numbers = np.asarray(list(values), dtype=np.float64)
    count = len(numbers)
    if count == 0:
        raise ValueError("a mean needs at least one value, got none")
    mean = float(numbers.mean())
    if count == 1:
        return Interval(mean, None, 1)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, df=count - 1))
    return Interval(mean, quantile * float(numbers.std(ddof=1)) / math.sqrt(count), count)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Interval:
    """Mean of first - second over the episodes that both have, with its 95% interval.

    Args:
        first: value of each episode, by the episode's number.
        second: the same of another method.

    Raises:
        ValueError: no episode is in both.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError("a paired difference needs at least one common episode, got none")
    return mean_interval(first[episode] - second[episode] for episode in common)
