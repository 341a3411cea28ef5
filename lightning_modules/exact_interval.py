"""The exact binomial interval of an accuracy; without heavy imports, since reports need it too."""

from __future__ import annotations

CONFIDENCE = 0.95


def exact_interval(right: int, images: int) -> tuple[float, float]:
    """Return the ends in percent of the exact binomial 95% interval (Clopper and Pearson) of an accuracy.

    Raises:
        ValueError: There are no images, or more right ones than images.
    """
    from scipy import stats  # type: ignore[import-untyped]  # takes longer to import than a report

    interval = stats.binomtest(right, images).proportion_ci(CONFIDENCE, method="exact")
    return 100.0 * float(interval.low), 100.0 * float(interval.high)
