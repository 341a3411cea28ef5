"""A callback that ends a fit at the support loss of another method, and the mean loss at a fit's end."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import floor, isfinite
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..errors import DtrapError, check_number
from .stage_switch import run_length, steps_done

WINDOW = 0.1


def window_steps(window: float, total: int) -> int:
    """Return the number of steps of a window: its share of the run's steps, rounded down, but at least 1."""
    return max(floor(Fraction(str(window)) * total), 1)


def window_key(window: float) -> str:
    """Return the key of a window in a row's `losses`: "window" for the default share, else such as "window_0.25"."""
    return "window" if window == WINDOW else f"window_{window:g}"


class FinalLoss(Callback):
    """Record the mean of L_vlm over the last steps of a fit.

    Args:
        windows: Shares of the run's steps to take the mean over.
    """

    def __init__(self, windows: Iterable[float] = (WINDOW,)) -> None:
        self.windows = sorted(set(windows))
        self._losses: deque[Tensor] = deque()
        self._total = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset at the start of a fit."""
        if stage == "fit":
            self._losses = deque()

    def state_dict(self) -> dict[str, Any]:
        """Return the losses so far, for Lightning's checkpoints."""
        return {"losses": torch.stack(list(self._losses)) if self._losses else torch.zeros(0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the losses from a checkpoint."""
        self._losses = deque(state_dict["losses"].unbind())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for the largest window; with accumulated gradients a step has several batches and losses."""
        self._total = (run_length(trainer) or 0) * trainer.accumulate_grad_batches
        known = (loss.to(pl_module.device) for loss in self._losses)  # of a checkpoint, on the CPU
        self._losses = deque(known, maxlen=window_steps(self.windows[-1], self._total))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep L_vlm as a tensor: reading its value would wait for the device."""
        loss = _support_loss(outputs)
        if loss is not None:
            self._losses.append(loss)

    def mean(self, window: float) -> float | None:
        """Return the mean over the last steps of a window; None if fewer were made."""
        steps = window_steps(window, self._total)
        if len(self._losses) < steps:
            return None
        return float(torch.stack(list(self._losses)[-steps:]).cpu().double().mean())

    def row_values(self) -> dict[str, Any]:
        """Return the means as a part of the row's `losses`."""
        means = {window: self.mean(window) for window in self.windows}
        found = {window_key(w): {"L_vlm": mean} for w, mean in means.items() if mean is not None and isfinite(mean)}
        return {"losses": found} if found else {}


class StopAtLoss(Callback):
    """End a fit when its support loss has come down to the final one of another method in the same episode.

    The control of the trap study: plain fine-tuning that fits the support images only as far as the suppressed method
    does. The loss is the mean of L_vlm over the last `window` share of the run's steps, compared after every step with
    the same mean at the end of the other method. The row then has `stopped_early`, and `stop_at_loss` with the
    reference, its loss, and the step at which it was reached (null if it never was).

    `dtrap fit` gives this callback the rows of the episode; elsewhere call `use_row` before the fit.

    Args:
        reference: Name of the method whose loss is the end; it runs before this one.
        window: Share of the run's steps, above 0 and at most 1.

    Raises:
        DtrapError: `reference` is empty, `window` is out of range, there is no row of the reference, or the module's
            `training_step` does not return "L_vlm".
    """

    def __init__(self, reference: str, window: float = WINDOW) -> None:
        if not reference:
            raise DtrapError("StopAtLoss: reference is empty; expected the name of a method that runs before this one.")
        check_number("StopAtLoss: window", window, above=0)
        if window > 1:
            raise DtrapError(f"StopAtLoss: window is {window}; expected a share of the run's steps, at most 1.")
        self.reference, self.window = reference, window
        self.goal: float | None = None
        self.step: int | None = None
        self._known = False
        self._done = 0
        self._recent = FinalLoss([window])

    def use_row(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the loss to stop at from the rows of the same episode, each with its "method" and "losses".

        Raises:
            DtrapError: None is the reference's, or it was written without the mean loss of the window.
        """
        row = next((row for row in rows if row.get("method") == self.reference), None)
        if row is None:
            found = ", ".join(str(row.get("method")) for row in rows) or "(none)"
            raise DtrapError(
                f"StopAtLoss: no row of '{self.reference}' in this episode; there are: {found}. Compare with a method "
                "of that name that runs before this one."
            )
        self._known, self.goal = True, None
        if row.get("diverged"):
            warnings.warn(
                f"StopAtLoss: '{self.reference}' diverged in this episode, so there is no loss to stop at and the fit "
                "has its whole length.",
                stacklevel=2,
            )
            return
        self.goal = ((row.get("losses") or {}).get(window_key(self.window)) or {}).get("L_vlm")
        if self.goal is None:
            raise DtrapError(
                f"StopAtLoss: the row of '{self.reference}' has no mean loss over the last {self.window:g} of its "
                "steps; an earlier version wrote it, or nothing was trained. Run it again with --protocol.overwrite "
                "true, or choose another reference."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset at the start of a fit."""
        if stage == "fit":
            self.step = None
            self._recent.setup(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        """Return the losses so far and the step of the end, for Lightning's checkpoints."""
        return {**self._recent.state_dict(), "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them from a checkpoint."""
        self._recent.load_state_dict(state_dict)
        self.step = state_dict.get("step")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a loss to stop at; a run that is resumed from its end has no further step."""
        if not self._known:
            raise DtrapError(
                f"StopAtLoss: nobody gave the row of '{self.reference}'. `dtrap fit` does, with --protocol.compare; "
                "elsewhere call use_row([{'method': name, 'losses': {'" + window_key(self.window) + "': {'L_vlm': loss}"
                "}}]) before the fit."
            )
        if run_length(trainer) is None:
            raise DtrapError(
                "StopAtLoss: the length of the run is unknown, so the window has no number of steps. Set "
                "Trainer(max_steps=...), or max_epochs if the loader has a length."
            )
        self._recent.on_train_start(trainer, pl_module)
        self._done = steps_done(trainer, pl_module)
        if self.step is not None:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the fit if the mean of the last steps has come down to the reference's."""
        if _support_loss(outputs) is None:
            raise DtrapError(
                f"StopAtLoss: training_step of {type(pl_module).__name__} returned no 'L_vlm'; expected a dictionary "
                "with 'loss' and 'L_vlm', such as a FewShotClassifier's."
            )
        self._recent.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        before, self._done = self._done, steps_done(trainer, pl_module)
        if self._done == before:  # a part of an accumulated gradient, which would be lost
            return
        mean = self._recent.mean(self.window)
        if self.step is not None or self.goal is None or mean is None:
            return
        if trainer.strategy.reduce_boolean_decision(mean <= self.goal, all=False):  # one decision of all processes
            self.step = self._done
            trainer.should_stop = True

    def row_values(self) -> dict[str, Any]:
        """Return what the row says of the end."""
        return {"stop_at_loss": {"reference": self.reference, "loss": self.goal, "step": self.step}}


def _support_loss(outputs: Any) -> Tensor | None:
    loss = outputs.get("L_vlm") if isinstance(outputs, Mapping) else None
    return loss.detach() if isinstance(loss, Tensor) else None
