"""A callback that turns SVL and RA off after the first part of training."""

from __future__ import annotations

import warnings
from contextlib import suppress
from fractions import Fraction
from math import floor, isfinite
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule, Trainer

from ..errors import DtrapError, check_one_of
from .switch_rules import RULES, GapRule, GradientRule, latest_step

Rule = Literal["exact", "authors", "gap", "gradient"]


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
        rule: "exact", or "authors" for the roundings of the authors' code (see `suppressed_progress`). Two rules of our
            own end the stage by what is seen in the training, within [0.2 T, 0.8 T], instead of at `stop`: "gap" when
            the gap of the support set has not become smaller for 10 % of the run, "gradient" when the gradients of
            L_vlm and of the whole loss disagree (see `switch_rules`). p keeps its denominator, and stays 1 after it.

    Raises:
        DtrapError: Not 0 <= start <= stop <= 1, the module has no suitable `objective`, or the length of the run is
            unknown.

    Attributes:
        ended: The step before which a rule of our own ended the stage; None before that.
    """

    def __init__(self, start: float | str = 0, stop: float | str = "3/5", rule: Rule = "exact") -> None:
        self.start, self.stop, self.rule = _fraction("start", start), _fraction("stop", stop), rule
        if self.start > self.stop:
            raise DtrapError(f"StageSwitch: start {start} is after stop {stop}; expected 0 <= start <= stop <= 1.")
        check_one_of("StageSwitch: rule", rule, get_args(Rule))
        if rule != "exact" and (self.start, self.stop) != (0, Fraction(3, 5)):
            raise DtrapError(
                f"StageSwitch: rule '{rule}' needs start 0 and stop 3/5; use rule 'exact' for other stages."
            )
        self.ended: int | None = None
        self._seen: GapRule | GradientRule | None = None
        self._restored: dict[str, Any] | None = None
        self._step = 0
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
        self._watch(pl_module)
        # The step before the first one of a resumed run: the objective keeps that step's relations within the stage.
        self._set(trainer, pl_module, before=1)

    def last_step(self, total: int) -> int:
        """Return the number of steps after which the stage of a run of `total` steps is over.

        By a rule of our own it is over at `ended`; before that is known, and without any suppression, at the latest.
        """
        if self.rule in RULES:
            return latest_step(total) if self.ended is None else self.ended
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

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let a rule of our own decide whether the stage ends here; before a checkpoint of this step is written."""
        if self._seen is None or self.ended is not None:
            return
        objective: Any = pl_module.objective
        step = steps_done(trainer, pl_module)
        if step <= self._step or objective.seen is None:
            return
        self._step = step
        ended = self._seen.ended(step, objective.seen) or step >= latest_step(self._total)
        # Several processes decide together: one that ended the stage alone would wait for the others for ever.
        if trainer.strategy.reduce_boolean_decision(ended, all=False):
            self.ended, objective.watched, objective.seen = step, None, None

    def _set(self, trainer: Trainer, pl_module: LightningModule, before: int = 0) -> None:
        # Ready batches include the current one, where there is one.
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + before
        step = (batches if self._counts_batches else trainer.global_step) - before
        _set_stage(pl_module)(self._progress(step) if step >= 0 else None)

    def _progress(self, step: int) -> float | None:
        if self._seen is not None:
            within = self.ended is None or step < self.ended
            return min(step / max(floor(self.stop * self._total), 1), 1.0) if within else None
        rule: Literal["exact", "authors"] = "authors" if self.rule == "authors" else "exact"
        return suppressed_progress(step, self._total, start=self.start, stop=self.stop, rule=rule)

    def _watch(self, pl_module: LightningModule) -> None:
        """Begin with a rule of our own, or go on with it in a resumed run."""
        self.ended, self._seen, self._step = None, None, 0
        if self.rule not in RULES:
            return
        objective: Any = getattr(pl_module, "objective", None)
        if not hasattr(objective, "watched"):
            raise DtrapError(
                f"StageSwitch: rule '{self.rule}' reads what the objective keeps of a step, but "
                f"{type(objective).__name__} keeps nothing. Use dtrap.lightning_modules.Objective, or rule 'exact'."
            )
        self._seen = RULES[self.rule](self._total, objective.logit_scale)
        if self._restored is not None:
            self.ended, self._step = self._restored["ended"], self._restored["step"]
            self._seen.load_state_dict(self._restored["seen"])
            self._restored = None
        objective.watched = self._seen.watches if self.ended is None and objective.suppresses else None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs for a rule of our own."""
        return {} if self._seen is None else {"ended": self.ended, "step": self._step, "seen": self._seen.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint for the start of the training."""
        self._restored = state_dict or None

    def row_values(self) -> dict[str, Any]:
        """Return at which step a rule of our own ended the stage, for the result row."""
        return {} if self._seen is None else {"switch_step": self.ended}


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
