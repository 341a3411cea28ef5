"""A callback that turns SVL and RA off after the first part of training."""

from __future__ import annotations

import warnings
from contextlib import suppress
from fractions import Fraction
from math import floor, isfinite
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from ..errors import DtrapError, check_one_of


def suppressed_progress(
    step: int, total: int, *, start: Fraction, stop: Fraction, rule: Literal["exact", "authors"] = "exact"
) -> float | None:
    """Return the progress p of optimizer step `step` through the suppressed stage, or None outside of it.

    Args:
        step: Number of optimizer steps before this one.
        total: T, the number of optimizer steps of the run.
        start: Fraction of the run at which the stage begins: its first step is floor(start * T).
        stop: Fraction of the run at which it ends: the first step after it is floor(stop * T).
        rule: "exact": p = (i - first) / (last - first) in exact arithmetic. "authors": the two roundings of their code,
            p = i / int(0.6 T) and the end at 3 * int(T / 5), with step 0 always in the stage; only for the first 3/5.
    """
    if rule == "authors":
        if step >= 3 * (total // 5) and step > 0:
            return None
        return step / max(int(0.6 * total), 1)
    first, last = floor(start * total), floor(stop * total)
    return (step - first) / (last - first) if first <= step < last else None


def run_length(trainer: Trainer) -> int | None:
    """Return T, the number of optimizer steps of the run; None if it is unknown."""
    total = trainer.estimated_stepping_batches
    return int(total) if isfinite(total) and total >= 0 else None  # -1 is Lightning's answer without a length


def counts_batches(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Return whether batches are counted as steps: with manual optimization, unless `max_steps` alone ends the run."""
    return not pl_module.automatic_optimization and trainer.estimated_stepping_batches != trainer.max_steps


def steps_done(trainer: Trainer, pl_module: LightningModule) -> int:
    """Return the number of steps that are done at the end of a batch, counted as `StageSwitch` counts them."""
    batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return batches if counts_batches(trainer, pl_module) else trainer.global_step


class StageSwitch(Callback):
    """Suppress visual learning (SVL, RA) in one stage of the run, by default its first 3/5.

    Works with any LightningModule whose attribute `objective` has a method `set_stage(progress)`, such as
    `dtrap.lightning_modules.Objective`. The method is called before each training batch with p in [0, 1) in the stage
    and with None outside of it. Steps are optimizer steps of the whole run, which includes gradient accumulation and
    several batches per epoch. With manual optimization a batch may step several optimizers, so batches are counted
    instead, unless `max_steps` alone ends the run.

    Args:
        start: Fraction of the run at which the stage begins, a number or a text such as "1/5".
        stop: Fraction of the run at which the stage ends. The paper's timing study has the stage at the beginning
            (0 to 3/5), and with the same length in the middle or at the end.
        rule: "exact", or "authors" for the roundings of the authors' code (see `suppressed_progress`).

    Raises:
        DtrapError: Not 0 <= start <= stop <= 1, the module has no suitable `objective`, or the length of the run is
            unknown.
    """

    def __init__(
        self, start: float | str = 0, stop: float | str = "3/5", rule: Literal["exact", "authors"] = "exact"
    ) -> None:
        self.start, self.stop, self.rule = _fraction("start", start), _fraction("stop", stop), rule
        if self.start > self.stop:
            raise DtrapError(f"StageSwitch: start {start} is after stop {stop}; expected 0 <= start <= stop <= 1.")
        check_one_of("StageSwitch: rule", rule, ("exact", "authors"))
        if rule == "authors" and (self.start, self.stop) != (0, Fraction(3, 5)):
            raise DtrapError(
                "StageSwitch: rule 'authors' needs start 0 and stop 3/5; use rule 'exact' for other stages."
            )
        self._total = 0
        self._counts_batches = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the number of steps of the run and begin outside of the stage; a resumed run begins where it was."""
        total = run_length(trainer)
        if total is None:
            raise DtrapError(
                "StageSwitch: the length of the run is unknown (max_epochs and max_steps are both -1, or the loader "
                "has no length). Set Trainer(max_steps=...), or max_epochs if the loader has a length."
            )
        self._total = total
        if self._total > 0 and floor(self.start * self._total) >= floor(self.stop * self._total):
            self._warn_empty(pl_module)
        self._counts_batches = counts_batches(trainer, pl_module)
        # The step before the first one of a resumed run: the objective keeps that step's relations within the stage.
        self._set(trainer, pl_module, before=1)

    def last_step(self, total: int) -> int:
        """Return the number of steps after which the stage of a run of `total` steps is over."""
        if self.rule == "authors":
            return max(3 * (total // 5), min(total, 1))
        return floor(self.stop * total)

    def _warn_empty(self, pl_module: LightningModule) -> None:
        objective = getattr(pl_module, "objective", None)
        if getattr(objective, "suppresses", False) and self.rule == "exact":
            warnings.warn(
                f"StageSwitch: the stage {self.start} to {self.stop} of {self._total} step(s) is empty, so L_ad and "
                "L_ra have no effect. Train longer, or change --stage_switch.start and --stage_switch.stop.",
                stacklevel=2,
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the objective's position in the stage for the next step."""
        self._set(trainer, pl_module)

    def _set(self, trainer: Trainer, pl_module: LightningModule, before: int = 0) -> None:
        # Ready batches include the current one, where there is one.
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + before
        step = (batches if self._counts_batches else trainer.global_step) - before
        progress = None
        if step >= 0:
            progress = suppressed_progress(step, self._total, start=self.start, stop=self.stop, rule=self.rule)
        _set_stage(pl_module)(progress)


def _fraction(name: str, value: float | str) -> Fraction:
    with suppress(ValueError, ZeroDivisionError):
        fraction = Fraction(str(value))
        if 0 <= fraction <= 1:
            return fraction
    raise DtrapError(
        f"StageSwitch: {name} is {value!r}; expected a fraction of the run between 0 and 1, such as 0.6 or 3/5."
    )


def _set_stage(pl_module: LightningModule) -> Any:
    objective = getattr(pl_module, "objective", None)
    method = getattr(objective, "set_stage", None)
    if not callable(method):
        missing = "no attribute `objective`" if objective is None else "an `objective` without `set_stage`"
        raise DtrapError(
            f"StageSwitch: {type(pl_module).__name__} has {missing}; expected `self.objective` with "
            "`set_stage(progress: float | None)`, such as dtrap.lightning_modules.Objective()."
        )
    return method
