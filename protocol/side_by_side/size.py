"""How many episodes run side by side: as asked for, or as measured once on the device and kept in the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from ...parsing import read_json
from ..run_folder import RunFolder

SIZES = (1, 2, 4, 8, 16)
GAIN = 1.05  # a larger group must be this much faster
WARM_UP, STEPS = 3, 8
FILE = "side_by_side.json"


class Stopwatch(Callback):
    """Measures the seconds of a step after the first ones of a fit."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Note the time."""
        self._note(trainer)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Note the time."""
        self._note(trainer)

    def _note(self, trainer: Trainer) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        self._times.append(time.monotonic())

    @property
    def seconds(self) -> float:
        """Mean seconds of a step."""
        times = self._times[min(WARM_UP, len(self._times) - 2) :]
        return (times[-1] - times[0]) / (len(times) - 1)


def best_size(measure: Callable[[int], float], sizes: Sequence[int] = SIZES) -> int:
    """Return the number of episodes with the least time for each, of those that fit into the memory.

    Args:
        measure: Returns the seconds of a step with so many episodes.
        sizes: What is tried, in ascending order; it ends where a size does not pay.

    Raises:
        OutOfMemoryError: One episode does not fit.
    """
    best, least = sizes[0], measure(sizes[0])
    for size in sizes[1:]:
        try:
            seconds = measure(size) / size
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if seconds * GAIN > least:
            break
        best, least = size, seconds
    return best


class KnownSizes:
    """The measured numbers of a run folder, by device and method.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.path = folder, folder.path / FILE
        try:
            content = read_json(self.path)
        except (OSError, ValueError):
            content = {}
        self._sizes: dict[str, dict[str, int]] = content if isinstance(content, dict) else {}

    def get(self, device: str, method: str) -> int | None:
        """Return a number that was measured before; None if none was."""
        known = self._sizes.get(device)
        size = known.get(method) if isinstance(known, dict) else None
        return size if isinstance(size, int) and not isinstance(size, bool) and size >= 1 else None

    def keep(self, device: str, method: str, size: int) -> None:
        """Keep a number."""
        self._sizes.setdefault(device, {})[method] = size
        self.folder.write_json(self.path, self._sizes)
