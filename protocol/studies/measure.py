"""How long an episode takes, from a few real steps of its first one."""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from ...errors import DtrapError, first_line
from ...lightning_modules.backbones.hub import without_downloads
from ...signals import STOP
from ..configuration import MethodConfig, build_data
from ..episode import run_episode, without_expected_warnings
from ..precision import settle_precision
from ..progress import EpisodeProgress
from ..rehearsal import Loaded, build_modules
from .resolve import ResolvedCell, as_in_study, methods_of

# A measurement ends after this number of steps, or with the first one that ends after this time.
MOST_STEPS, SECONDS = 20, 2.0
# After this time of all measurements no other one begins.
SECONDS_OF_ALL = 10.0
TOO_LONG = f"others took {SECONDS_OF_ALL:g} s"


class _Stopwatch(Callback):
    """Ends a fit after a few steps, and computes what the whole of it would take."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.steps = 0
        self.began = self.ended = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the number of steps of the whole fit."""
        self.steps = int(trainer.estimated_stepping_batches)
        self.began = time.monotonic()
        self.times = [self.began]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """End the fit when it has been long enough."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.monotonic())
        if len(self.times) > MOST_STEPS or self.times[-1] - self.began > SECONDS:
            trainer.should_stop = True

    def on_train_end(self, *_: Any) -> None:
        """Keep the time of the end."""
        self.ended = time.monotonic()

    def whole(self, seconds: float) -> float:
        """Return the seconds of a whole episode from those of the shortened one."""
        each = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        # The first step allocates memory.
        step = median(each[1:] or each) if each else 0.0
        return seconds - (self.ended - self.began) + step * self.steps


def measure(cells: Mapping[str, ResolvedCell]) -> tuple[dict[str, float | None], dict[str, str]]:
    """Measure a few steps for each cost.

    Args:
        cells: A cell for each cost.

    Returns:
        Seconds of an episode by cost, None where they could not be measured, and the reasons for that.
    """
    found: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    loaded: Loaded = {}
    backbone = None
    started = time.monotonic()
    for cost, cell in sorted(cells.items(), key=lambda item: item[1].backbone):
        STOP.check()
        if time.monotonic() - started > SECONDS_OF_ALL:
            reasons[cost] = TOO_LONG
            continue
        if cell.backbone != backbone:
            loaded.clear()
            gc.collect()
            backbone = cell.backbone
        try:
            with without_downloads(), without_expected_warnings():
                found[cost] = _measure(methods_of(cell, "", 1)[cell.costs.index(cost)], loaded)
        except (DtrapError, RuntimeError, OSError) as error:
            found[cost] = None
            reasons[cost] = as_in_study(first_line(error))
    return found, reasons


def _measure(method: MethodConfig, loaded: Loaded) -> float:
    settle_precision([method])
    data = build_data(method.parsed)
    if data.streams:
        raise DtrapError("a task over all images is too long to try")
    data.setup()
    (module,) = build_modules([method], loaded).values()
    module.set_classes(data.class_names, data.template)
    watch = _Stopwatch()
    arguments = method.trainer_arguments(logger=False)
    arguments["callbacks"] = [watch]
    silent = Console(file=io.StringIO())
    progress = EpisodeProgress(1, [method.name], console=silent)
    started = time.monotonic()
    with progress:
        run_episode(module, data, arguments, method.stage_switch(), progress)
    seconds = time.monotonic() - started
    if not watch.times:  # nothing to train
        return seconds
    return watch.whole(seconds)
