"""Checks of a run before its first episode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError
from ..lightning_modules.batch_checks import check_objective_batches, check_tuner_batches
from .episode import callbacks_of, episode_trainer
from .episode_pictures import check_pictures
from .folder_identity import Method
from .references import check_references
from .settings import ProtocolSettings


def check_settings(methods: Sequence[Method], data: FewShotDataModule, settings: ProtocolSettings) -> None:
    """Validate data, trainer and stage of the methods before anything is deleted, written or loaded."""
    data.task  # noqa: B018
    data.subsets  # noqa: B018 - read now, because an overwriting run may delete the subset file
    check_pictures(settings, data)
    callbacks: dict[str, list[Any]] = {}
    for method in methods:
        method.stage_switch()
        objective, tuner = method.losses_and_tuner()
        check_tuner_batches(tuner, data)
        check_objective_batches(objective, data.full_batch, data)
        trainer = episode_trainer(method.trainer_arguments(logger=False), [])
        callbacks[method.name] = callbacks_of(trainer)
        if data.full_batch and trainer.accumulate_grad_batches != 1:
            raise DtrapError(
                f"--trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, but each epoch is one "
                "step with all support rows: nothing would be added up, and the loss only be divided. Leave it "
                "out, or set --data.batch_size for mini-batches."
            )
        if data.streams and trainer.max_steps != -1:
            raise DtrapError(
                f"--trainer.max_steps is {trainer.max_steps}, but the all-way protocol counts epochs of "
                f"{data.steps_per_epoch} step(s), which can be resumed. Give --trainer.max_epochs instead."
            )

    check_references(callbacks)
