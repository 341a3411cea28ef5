"""How long the device has had no batch: it waits for images, for Python or for a file to be written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..lightning_modules import FewShotClassifier
from ..parsing import read_json
from .progress import duration

# Most open pairs of CUDA events.
MOST_PAIRS = 4096


@dataclass(frozen=True)
class DeviceSeconds:
    """Seconds of episodes on one or several devices, added up.

    Attributes:
        total: From the start of the first episode to the end of the last one.
        busy: With a batch.
    """

    total: float = 0.0
    busy: float = 0.0

    def __add__(self, other: DeviceSeconds) -> DeviceSeconds:
        return DeviceSeconds(self.total + other.total, self.busy + other.busy)

    @property
    def idle(self) -> float:
        """Seconds without a batch."""
        return max(self.total - self.busy, 0.0)

    @property
    def idle_share(self) -> float | None:
        """Share of the time without a batch, 0 to 1; None without any time."""
        return self.idle / self.total if self.total > 0 else None

    def __str__(self) -> str:
        if self.idle_share is None:
            return ""
        return f"Device without a batch: {100 * self.idle_share:.0f} % of {duration(self.total)}"

    def summary(self) -> dict[str, dict[str, float | None]]:
        """Return what summary.json says."""
        total, idle = round(self.total, 3), round(self.idle, 3)
        return {"seconds": {"total": total, "idle": idle, "idle_share": round(idle / total, 4) if total else None}}

    @classmethod
    def read(cls, path: Path) -> DeviceSeconds:
        """Read the seconds of a summary.json; none where it has none, or where there is no such file."""
        with suppress(OSError, KeyError, TypeError, ValueError):
            seconds: Mapping[str, Any] = read_json(path)["device"]["seconds"]
            total, idle = float(seconds["total"]), float(seconds["idle"])
            if 0 <= idle <= total < float("inf"):
                return cls(total, total - idle)
        return cls()


class DeviceClock(Callback):
    """Measures the time in which the device has a batch.

    That is a training step, a test or validation batch, or what a tuner computes from all support images before its
    first step. On a GPU it is measured there, from the moment at which the device begins with a batch to the moment at
    which it has finished it; on a CPU by the wall clock. Pauses within a step, in which a GPU waits for Python to give
    it the next operation, count as time with a batch.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._total = self._busy = 0.0
        self._start: torch.cuda.Event | float | None = None
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self) -> None:
        """Start, or go on: the time since the end of the last episode counts."""
        self._start = None
        if self._began is None:
            self._began = time.monotonic()

    def seconds(self) -> DeviceSeconds:
        """Return the seconds up to now; wait for the device."""
        self._settle()
        if self._began is not None:
            self._total = time.monotonic() - self._began
        return DeviceSeconds(self._total, self._busy)

    @contextmanager
    def working(self, device: torch.device) -> Iterator[None]:
        """Count what is done in this context as time with a batch; a context within another one adds nothing."""
        outer = self._start is not None
        if not outer:
            self._open(device)
        try:
            yield
        finally:
            if not outer:
                self._close(device)

    def _open(self, device: torch.device) -> None:
        self._start = self._now(device)

    def _close(self, device: torch.device) -> None:
        start, self._start = self._start, None
        if start is None:
            return
        end = self._now(device)
        if isinstance(start, float) and isinstance(end, float):
            self._busy += end - start
        elif not isinstance(start, float) and not isinstance(end, float):
            self._pairs.append((start, end))
            if len(self._pairs) >= MOST_PAIRS:
                self._settle(MOST_PAIRS // 2)  # the device has finished these long ago

    @staticmethod
    def _now(device: torch.device) -> torch.cuda.Event | float:
        if device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    def _settle(self, number: int | None = None) -> None:
        """Add the seconds between pairs of events."""
        settled, self._pairs = self._pairs[:number], self._pairs[len(self._pairs[:number]) :]
        for start, end in settled:
            end.synchronize()
            self._busy += start.elapsed_time(end) / 1000

    # What Lightning calls

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the module say when it works outside of a batch."""
        if isinstance(pl_module, FewShotClassifier):
            pl_module.device_work = lambda: self.working(trainer.strategy.root_device)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Undo `setup`."""
        if isinstance(pl_module, FewShotClassifier):
            pl_module.device_work = nullcontext

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """A step begins."""
        self._open(trainer.strategy.root_device)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """A step ends."""
        self._close(trainer.strategy.root_device)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """A validation batch begins."""
        self._open(trainer.strategy.root_device)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """A validation batch ends."""
        self._close(trainer.strategy.root_device)

    def on_test_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """A test batch begins."""
        self._open(trainer.strategy.root_device)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """A test batch ends."""
        self._close(trainer.strategy.root_device)
