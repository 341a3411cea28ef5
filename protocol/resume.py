"""Going on in the middle of a long task: a checkpoint every so many steps, and steps that do not depend on the past."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from .results import cannot_write


class SeededSteps(Callback):
    """Draws all that is random in a step from (seed, step), so that a resumed task goes on as if never stopped.

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


class StepCheckpoint(Callback):
    """Leaves one Lightning checkpoint every so many steps: adapter, optimiser, schedule; never the frozen backbone.

    Args:
        path: The file; it is whole or absent, and gone when the task has ended.
        every: Steps from one to the next.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write it in the middle of an epoch; that of its last step comes with the epoch's end."""
        if not trainer.is_last_batch:
            self._write(trainer, trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it at the end of an epoch."""
        self._write(trainer, trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def _write(self, trainer: Trainer, done: int) -> None:
        if done % self.every:
            return
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary)
            os.replace(temporary, self.path)
        except (OSError, RuntimeError) as error:  # torch's writer raises a RuntimeError on a full disk
            raise cannot_write(self.path, error) from error
        finally:
            temporary.unlink(missing_ok=True)
