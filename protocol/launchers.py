"""Refuse a run that torchrun, srun or mpirun has started several times over: each copy would run every episode."""

from __future__ import annotations

import os
import sys

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.plugins.environments import TorchElasticEnvironment

from ..errors import DtrapError

INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs that Lightning takes for shells, too


def check_one_process(command: str) -> None:
    """Raise a DtrapError if a launcher has started this command in several processes.

    Args:
        command: The command, such as "fit".
    """
    launcher, count = launched()
    if count > 1:
        raise DtrapError(
            f"{launcher} has started this command {count} times, but episodes are not shared by its processes: start "
            f"dtrap {command} once, with --protocol.workers {count} to run {count} episodes at a time."
        )


def launched() -> tuple[str, int]:
    """Return the launcher of this process and how many processes it has started; ("", 1) without one."""
    world = _number("WORLD_SIZE")
    if TorchElasticEnvironment.detect():
        return "torchrun", world
    if (steps := _number("SLURM_STEP_NUM_TASKS")) > 1 and not _is_shell():
        return "srun", steps
    # In a batch script SLURM_NTASKS counts what srun would start there, which is not this process.
    batch = os.environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in os.environ
    tasks = _number("SLURM_NTASKS")
    if "SLURM_STEP_NUM_TASKS" not in os.environ and tasks > 1 and not batch and not _is_shell():
        return "srun", tasks
    for launcher, name in (("mpirun", "OMPI_COMM_WORLD_SIZE"), ("mpirun", "PMI_SIZE")):
        if "SLURM_NTASKS" not in os.environ and (count := _number(name)) > 1:
            return launcher, count
    ranked = "RANK" in os.environ or "LOCAL_RANK" in os.environ
    return ("a launcher", world) if world > 1 and ranked else ("", 1)


def _is_shell() -> bool:
    """Whether this is typed in an interactive shell of SLURM; what srun starts from there has no terminal."""
    if SLURMEnvironment.job_name() not in INTERACTIVE:
        return False
    return "SLURM_STEP_NUM_TASKS" not in os.environ or (sys.stdin is not None and sys.stdin.isatty())


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 1
