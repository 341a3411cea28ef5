"""Going on in the middle of a long task: a checkpoint every so many steps, and steps that do not depend on the past."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ..datamodules.few_shot import FewShotDataModule
from ..datamodules.subset import subset_content
from ..errors import DtrapError
from ..files import cannot_write
from .run_folder import ELSEWHERE, RESUMES, RunFolder


def record_subsets(folder: RunFolder, data: FewShotDataModule, missing: Container[int]) -> None:
    """Write the images of each seed to the run's subset file; episodes have none.

    An image that was damaged or repaired since the last start changes them. What has rows keeps the images of these;
    a task that was begun with others begins anew.

    Args:
        folder: The run's folder.
        data: The data module.
        missing: Episodes that some method has yet to run.

    Raises:
        DtrapError: A seed would be compared on other images than the rows that it has.
    """
    if not data.subsets:
        return
    content = subset_content(data, data.shot, data.subsets)
    try:
        recorded = json.loads(folder.subset.read_text(encoding="utf-8"))["seeds"]
    except (OSError, ValueError, KeyError, TypeError):
        recorded = {}
    with_rows = {row["episode"] for row in folder.rows.read()}
    for episode, seed in enumerate(map(str, data.subsets)):
        if recorded.get(seed, content["seeds"][seed]) == content["seeds"][seed]:
            continue
        if episode in with_rows and episode in missing:
            raise DtrapError(
                f"{folder.subset}: seed {seed} has results on other images than can be read now: some were damaged or "
                f"repaired since. Restore them. {ELSEWHERE}"
            )
        if episode in with_rows:
            content["seeds"][seed] = recorded[seed]
        for checkpoint in folder.checkpoints.glob(f"episode_{episode:04d}_*.ckpt"):
            checkpoint.unlink(missing_ok=True)
    folder.write_json(folder.subset, content)


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


class StepCheckpoint(Checkpoint):
    """Leaves one Lightning checkpoint every so many steps: adapter, optimiser, schedule; never the frozen backbone.

    Lightning calls a `Checkpoint` after all other callbacks, whose state it is to hold, EarlyStopping's too.

    Args:
        path: The file; it is whole or absent, and gone when the task has ended.
        every: Steps from one to the next.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self._due = False

    @property
    def found(self) -> bool:
        """Whether there is one to go on from; a damaged one, as a power cut leaves it, is deleted."""
        if not self.path.is_file():
            return False
        try:
            torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            warnings.warn(f"{self.path} is damaged ({type(error).__name__}): the task begins anew.", stacklevel=2)
            self.path.unlink()
            return False
        return True

    def remove(self) -> None:
        """Delete the file, and its folder after the last one."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or holds that of another method
            self.path.parent.rmdir()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write it in the middle of an epoch; that of its last step comes with the epoch's end, after a validation.

        Not between the parts of an accumulated gradient nor before a validation, which a resumed run would miss.
        """
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self._due = self._due or done % self.every == 0
        accumulates = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        every: Any = trainer.val_check_batch
        validates = bool(trainer.val_dataloaders) and (batch_idx + 1) % every == 0
        if not (trainer.is_last_batch or accumulates or validates):
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it at the end of an epoch, but for the last one: what ends a fit would be left out after it."""
        if trainer.global_step < trainer.estimated_stepping_batches:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not self._due:
            return
        self._due = False
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except (OSError, RuntimeError) as error:  # torch's writer raises a RuntimeError on a full disk
            raise cannot_write(self.path, error, RESUMES) from error
        finally:
            temporary.unlink(missing_ok=True)
