"""What the benchmarks share: a clock of training steps, measurements in processes of their own, verdicts."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from lightning.pytorch import Callback


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


def in_new_process(script: str, *words: object) -> dict[str, float]:
    """The figures that a script prints as its last line, in JSON, in a fresh interpreter."""
    done = subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr or f"ended by signal {-done.returncode}: out of memory?")
    return json.loads(done.stdout.splitlines()[-1])


def verdict(right: bool) -> str:
    """PASS or FAIL."""
    return "PASS" if right else "FAIL"
