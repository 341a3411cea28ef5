"""Shared by the benchmarks: a clock for training steps, measurements in new processes, verdicts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dtrap.callbacks import StageSwitch
from lightning.pytorch import Callback, LightningModule, Trainer


class StepClock(Callback):
    """Seconds of every training step, from its batch to its update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, *_: object) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._started)


def step_seconds(module: LightningModule, **loaders: Any) -> list[float]:
    """Seconds of every step of one epoch on the CPU, suppressed to its end, through `Trainer.fit`."""
    clock = StepClock()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StageSwitch(stop=1), clock],
    )
    trainer.fit(module, **loaders)
    return clock.seconds


def peak_gigabytes() -> float:
    """Peak resident memory of this program in GB (10^9 bytes); Linux.

    Not `ru_maxrss`, in which the program that started this one counts.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9


def in_new_process(script: str, *words: object) -> dict[str, float]:
    """The figures that a script prints as its last line, in JSON, in a fresh interpreter."""
    done = subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr or f"ended by signal {-done.returncode}: out of memory?")
    return json.loads(done.stdout.splitlines()[-1])


def verdict(right: bool) -> str:
    """PASS or FAIL."""
    return "PASS" if right else "FAIL"
