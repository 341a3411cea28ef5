"""What a row says of the training: the terms of the loss, the stage and the time."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..lightning_modules import FewShotClassifier
from .progress import EpisodeProgress

KEPT_STEPS = 50
TERM_DIGITS = 6  # significant; the rows of 800 episodes hold 160,000 of these numbers

Terms = dict[str, Tensor]


class EpisodeRecorder(Callback):
    """Records losses and time of a fit, and shows the progress of fit and test.

    Args:
        progress: Where the progress is shown.
    """

    def __init__(self, progress: EpisodeProgress) -> None:
        self.progress = progress
        self._share = 1.0
        self._started = time.monotonic()
        self._boundary: Terms | None = None
        self._end: Terms | None = None
        self._chosen: set[int] = set()
        self._step = 0
        self._terms: dict[int, Terms] = {}
        self._stage: list[int] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return losses and time so far, for a checkpoint."""
        losses = {"boundary": self._boundary, "end": self._end, "terms": self._terms, "stage": self._stage}
        return {**losses, "step": self._step, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore losses and time from a checkpoint; one of an earlier version has no terms."""
        self._started -= state_dict["seconds"]
        self._boundary, self._end = state_dict["boundary"], state_dict["end"]
        self._terms, self._stage = dict(state_dict.get("terms", {})), state_dict.get("stage")
        self._step = state_dict.get("step", 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the share of the run that one step is, and the steps whose terms are kept."""
        total = max(int(trainer.estimated_stepping_batches), 1)
        self._share = 1 / total
        self._chosen = evenly_spaced(total)
        self.progress.resume(min(trainer.global_step / total, 1.0))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the number of the step: with manual optimization a batch may step several optimizers."""
        automatic = pl_module.automatic_optimization
        self._step = trainer.global_step if automatic else trainer.fit_loop.epoch_loop.total_batch_idx

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the terms of this step as tensors: reading their values would wait for the device."""
        self._end = {name: value for name, value in outputs.items() if name != "loss"}
        if self._step in self._chosen:  # of an accumulated gradient, the last part's
            self._terms[self._step] = self._end
        if isinstance(pl_module, FewShotClassifier) and pl_module.objective.progress is not None:
            self._boundary = self._end
            self._stage = [self._step if self._stage is None else self._stage[0], self._step]
        self.progress.advance(self._share)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the number of the test batch."""
        self.progress.test(batch_idx + 1, int(trainer.num_test_batches[dataloader_idx]))

    @property
    def seconds(self) -> float:
        """Time since the task started, including the time up to the checkpoint of a resumed task."""
        return time.monotonic() - self._started

    @property
    def losses(self) -> dict[str, dict[str, float] | None]:
        """The terms of the last suppressed step (the stage boundary) and of the last step."""
        return {"boundary": _floats(self._boundary), "end": _floats(self._end)}

    @property
    def terms(self) -> dict[str, list[Any] | None] | None:
        """The terms at evenly spaced steps; see `ResultRows`. None if nothing was trained."""
        if self._end is None:
            return None
        kept = self._terms | {self._step: self._end}  # a training may have ended early
        names = dict.fromkeys(name for terms in kept.values() for name in terms)
        series = {name: [_rounded(terms.get(name)) for terms in kept.values()] for name in names}
        return {"step": list(kept), **series, "stage": self._stage}


def evenly_spaced(total: int, most: int = KEPT_STEPS) -> set[int]:
    """Return at most `most` evenly spaced steps of 0 .. total - 1, the first and the last among them."""
    return {round(number * (total - 1) / max(most - 1, 1)) for number in range(most)}


def _floats(terms: Terms | None) -> dict[str, float] | None:
    """Return the finite terms; None without any."""
    values = {name: float(value) for name, value in (terms or {}).items()}
    return {name: value for name, value in values.items() if math.isfinite(value)} or None


def _rounded(term: Tensor | None) -> float | None:
    value = math.nan if term is None else float(term)
    return float(f"{value:.{TERM_DIGITS}g}") if math.isfinite(value) else None
