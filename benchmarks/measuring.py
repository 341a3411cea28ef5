"""Shared by the benchmarks: clocks, memory, the rate of a matrix product, measurements in new processes, verdicts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The multiplication that a step is compared with: the tokens of 25 images times the first weight of a block's MLP.
ROWS, INNER, COLUMNS = 4925, 768, 3072


class NotRunError(Exception):
    """A figure could not be measured; the message says why."""


def wait_for(device: str) -> None:
    """Wait until the device has done what was asked of it."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


class Clock:
    """Seconds of a block: CPU time of this process on a CPU, which other programs hardly add to, wall time on a GPU."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.read = time.process_time if device == "cpu" else time.perf_counter

    def __enter__(self) -> Clock:
        wait_for(self.device)
        self.started = self.read()
        return self

    def __exit__(self, *_: object) -> None:
        wait_for(self.device)
        self.seconds = self.read() - self.started


def timed(work: Callable[[], Any], device: str = "cpu", times: int = 1) -> float:
    """Return the seconds of one call, of several in a row."""
    with Clock(device) as clock:
        for _ in range(times):
            work()
    return clock.seconds / times


def product(device: str = "cpu", dtype: str = "float32", small: bool = False) -> tuple[Callable[[], Any], float]:
    """Return a function that multiplies [4925, 768] by [768, 3072], and its GFLOP.

    Args:
        device: Where.
        dtype: Name of the type.
        small: A hundredth of the rows, for a try.
    """
    import torch

    rows = ROWS // 100 if small else ROWS
    kind = getattr(torch, dtype)
    first = torch.randn(rows, INNER, device=device, dtype=kind)
    second = torch.randn(INNER, COLUMNS, device=device, dtype=kind)
    result = torch.empty(rows, COLUMNS, device=device, dtype=kind)
    return lambda: torch.mm(first, second, out=result), 2 * rows * INNER * COLUMNS / 1e9


def status_gigabytes(entry: str) -> float:
    """Return an entry of /proc/self/status in GB (10^9 bytes), such as VmRSS; Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) * 1024 / 1e9


def peak_gigabytes() -> float:
    """Return the peak resident memory of this program in GB (10^9 bytes); Linux.

    Not `ru_maxrss`, in which the program that started this one counts.
    """
    return status_gigabytes("VmHWM")


def in_new_process(script: str, *words: object) -> dict[str, float]:
    """Return the figures that a script prints as its last line, in JSON, in a fresh interpreter."""
    done = subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True)
    return last_line(done)


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the last line of a process, in JSON.

    Raises:
        RuntimeError: The process failed.
    """
    if done.returncode:
        raise RuntimeError(done.stderr or f"ended by signal {-done.returncode}: out of memory?")
    return json.loads(done.stdout.splitlines()[-1])


def verdict(right: bool) -> str:
    """Return PASS or FAIL."""
    return "PASS" if right else "FAIL"
