"""How many episodes a difference needs, judged from the variance of those that were run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from ...lightning_modules.exact_interval import CONFIDENCE
from ..statistics import student_quantile

# With ten values the standard deviation is known to a factor of about 0.7 to 1.8 (95 %), so that the number of
# episodes, which goes with its square, is a guess by a factor of about 2. With fewer values it is none.
FEWEST_PAIRS = 10


def episodes_needed(differences: Sequence[float], half_width: float) -> int | None:
    """Return the least number of episodes whose 95% interval by Student's t is at most `half_width` wide on each side.

    Args:
        differences: The paired differences seen; their standard deviation (over n - 1) stands for that of all others.
        half_width: The half width that is wanted, in the unit of the differences.

    Returns:
        The number of episodes in all, which may be less than were run; None with fewer than ten differences, or if all
        are the same, since then nothing is known of the variance.
    """
    if len(differences) < FEWEST_PAIRS or min(differences) == max(differences):
        return None
    import numpy as np

    ratio = float(np.std(differences, ddof=1)) / half_width
    # Student's quantile is above the normal one, which bounds the number from below by a few.
    number = max(2, math.ceil((NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * ratio) ** 2))
    while student_quantile(number - 1) * ratio > math.sqrt(number):
        number += 1
    return number
