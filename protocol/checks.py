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
from .processes import Processes, asks_for_several, started_tasks
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
        trainer = episode_trainer(method.trainer_arguments(logger=False), [], several=data.streams)
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


def processes_of(methods: Sequence[Method], data: FewShotDataModule, *, allowed: bool) -> Processes | None:
    """Return the processes that share the tasks of a run; None for one process.

    Args:
        methods: The methods.
        data: The data module; episodes are too short to be shared.
        allowed: Whether there may be several.

    Raises:
        DtrapError: Several are not allowed, methods differ in their devices, or several were started for one device.
    """
    if not data.streams:
        return None
    asked = [method.trainer_arguments(logger=False) for method in methods]
    several = any(map(asks_for_several, asked))
    trainers = [episode_trainer(arguments, [], several=True) for arguments in asked] if several else []
    counts = [trainer.world_size for trainer in trainers]
    if max(counts, default=1) == 1:
        if (tasks := started_tasks()) > 1:
            raise DtrapError(
                f"torchrun or srun has started {tasks} processes, but the trainer has one device, so each would write "
                f"the same run. Give --trainer.strategy ddp --trainer.devices {tasks} (of one machine, times "
                "--trainer.num_nodes), or start one process."
            )
        return None
    if not allowed:
        raise DtrapError(
            f"the trainer has {max(counts)} devices, but a study runs each task on one. Give --trainer.devices 1, and "
            f"--protocol.workers {max(counts)} to run as many at a time; or run this cell with `dtrap fit`."
        )
    if len(set(counts)) > 1:
        raise DtrapError(
            f"the methods have {' and '.join(map(str, sorted(set(counts))))} devices; expected the same number for all "
            "methods of a run. Give --trainer.devices on the command line instead of in an overlay."
        )
    return Processes(trainers[0])
