"""Resume in the middle of a long task: checkpoints by step, and steps that do not depend on earlier ones."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ..files import replacing
from .run_folder import RESUMES


class SeededSteps(Callback):
    """Draws everything random in a step from (seed, step), so that a resumed task gives the same numbers.

    Args:
        seed: Seed of the task.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch's generators and the one of L_ad's prototypes."""
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        seed = (self.seed + 15485863 * (step + 1)) % 2**63
        torch.manual_seed(seed)
        generator = getattr(getattr(pl_module, "objective", None), "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)


class StepCheckpoint(Checkpoint):
    """Writes one Lightning checkpoint every few steps: adapter, optimizer and schedule, without the frozen backbone.

    It is a `Checkpoint` because Lightning calls those after all other callbacks, whose state (EarlyStopping's, for
    example) the file must hold.

    Args:
        path: The file, which is written atomically and deleted at the end of the task.
        every: Steps between two checkpoints.
        check: Called before a file is written; raises an error if its folder is gone.
        leads: Whether this process writes it; of several processes one does.
    """

    def __init__(self, path: Path, every: int, check: Callable[[], None] = lambda: None, *, leads: bool = True) -> None:
        self.path, self.every, self.check, self.leads = path, every, check, leads
        self._due = False

    @property
    def found(self) -> bool:
        """Whether there is a checkpoint to resume from. A damaged one (after a power cut) is deleted."""
        if not self.path.is_file():
            return False
        try:
            torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            warnings.warn(f"{self.path} is damaged ({type(error).__name__}): the task starts over.", stacklevel=2)
            self.path.unlink()
            return False
        return True

    def remove(self) -> None:
        """Delete the file, and its folder if it is empty then."""
        if not self.leads:
            return
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # the folder does not exist, or has the checkpoint of another method
            self.path.parent.rmdir()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a due checkpoint in the middle of an epoch.

        Nothing is written at the last step of an epoch (see `on_train_epoch_end`), between the parts of an accumulated
        gradient, or before a validation: a resumed run would miss what follows.
        """
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self._due = self._due or done % self.every == 0
        accumulates = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        every: Any = trainer.val_check_batch
        validates = bool(trainer.val_dataloaders) and (batch_idx + 1) % every == 0
        if not (trainer.is_last_batch or accumulates or validates):
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a due checkpoint at the end of an epoch, except the last: a resumed run would miss the fit's end."""
        if trainer.global_step < trainer.estimated_stepping_batches:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not self._due:
            return
        self._due = False
        if not self.leads:
            trainer.save_checkpoint(self.path)  # writes nothing here, but waits for the process that does
            return
        self.check()
        # torch's writer raises a RuntimeError on a full disk.
        with replacing(self.path, RESUMES, (OSError, RuntimeError)) as temporary:
            trainer.save_checkpoint(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
