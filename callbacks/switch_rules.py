"""Rules that end the suppressed stage by what is seen in the training, for `StageSwitch`.

The paper fixes the end at 3/5 of the run and leaves a better one as an open question. Both rules end the stage within
[0.2 T, 0.8 T].
"""

from __future__ import annotations

from collections import deque
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor

from ..metrics.gap_shift import SHIFTS, gap_shift_curve

EARLIEST, LATEST = 0.2, 0.8
PATIENCE = 0.1  # share of the run
LOOKS = 50  # the features are looked at 50 times in a run
WINDOW = 50  # steps of the mean of the gradients' cosine


class GapRule:
    """End the stage when the gap of the support set has not become smaller for 10 % of the run.

    The gap is loss(0) - least loss of the two-sided gap shift (Liang et al. 2022) of the plain support rows, as they
    are in the training step, dropout included.

    Args:
        total: T, the number of steps of the run.
        logit_scale: tau of the losses.

    Attributes:
        watches: What the objective has to keep of each step.
    """

    watches = "features"

    def __init__(self, total: int, logit_scale: float) -> None:
        self.total, self.logit_scale = total, logit_scale
        self.every = max(total // LOOKS, 1)
        self.least, self.since = float("inf"), 0

    def ended(self, step: int, seen: Any) -> bool:
        """Return whether the stage ends after `step` steps, given what the objective kept of the last one."""
        if step % self.every == 0:
            curve = gap_shift_curve(
                seen.image_features.float(),
                seen.text_features.float(),
                seen.labels,
                SHIFTS,
                logit_scale=self.logit_scale,
            )
            if float(curve.drop) < self.least:
                self.least, self.since = float(curve.drop), step
        return step >= ceil(EARLIEST * self.total) and step - self.since >= PATIENCE * self.total

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"least": self.least, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.least, self.since = state["least"], state["since"]


class GradientRule:
    """End the stage when the whole loss no longer helps the classification.

    The criterion is that of VtT (gradient conflict): the cosine of the gradients of L_vlm and of the whole loss with
    respect to the features; the stage ends when its mean over the last 50 steps is 0 or less.

    Args:
        total: T, the number of steps of the run.
        logit_scale: Not used.
    """

    watches = "gradients"

    def __init__(self, total: int, logit_scale: float) -> None:
        self.total = total
        self.every = max(total // LOOKS, 1)
        self.cosines: deque[Tensor] = deque(maxlen=WINDOW)

    def ended(self, step: int, seen: Any) -> bool:
        """Return whether the stage ends after `step` steps, given what the objective kept of the last one."""
        self.cosines.append(seen.agreement)
        # Reading a value waits for the device, so that it is not read in every step.
        if step < max(ceil(EARLIEST * self.total), min(WINDOW, self.total)) or step % self.every:
            return False
        return bool(torch.stack(list(self.cosines)).mean() <= 0)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"cosines": list(self.cosines)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.cosines.extend(state["cosines"])


RULES: dict[str, type[GapRule] | type[GradientRule]] = {"gap": GapRule, "gradient": GradientRule}


def latest_step(total: int) -> int:
    """Return the step at which a stage ends at the latest."""
    return floor(LATEST * total)
