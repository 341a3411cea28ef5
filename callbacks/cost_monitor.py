"""A callback that measures what L_ad and L_ra cost in a training step: parameters, FLOPs and time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ..errors import DtrapError, check_at_least

CONFIDENCE = 0.95
WARM_UP = 2


class CostMonitor(Callback):
    """Measure the cost of the two terms before the first step of a fit.

    Forward and backward pass of the first batch are made with and without L_ad and L_ra in turn, so that whatever else
    the machine does falls on both. FLOPs are those that torch's counter knows: products of matrices, convolutions and
    attention. The training and its results are the same with and without this callback: random numbers, gradients and
    the objective's state are restored.

    The row of an episode then has `cost`: `parameters` and `trained_parameters`, `gflops` and `gflops_without` of a
    step, `flops_added` in percent, `step_ms` and `step_ms_without` (medians), `step_ratio`, the median of the ratios of
    pairs, and its 95% interval `step_ratio_interval` from their order alone.

    Args:
        pairs: Number of timed pairs of steps.

    Raises:
        DtrapError: `pairs` is below 6, from which on the median has such an interval, or the module is not a
            FewShotClassifier.
    """

    def __init__(self, pairs: int = 20) -> None:
        check_at_least("CostMonitor: pairs", pairs, 6)
        self.pairs = pairs
        self.cost: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset at the start of a fit."""
        if not callable(getattr(pl_module, "terms", None)):
            raise DtrapError(
                f"CostMonitor: {type(pl_module).__name__} has no method `terms`; expected a FewShotClassifier."
            )
        if stage == "fit":
            self.cost = {}

    def row_values(self) -> dict[str, Any]:
        """Return what was measured as a part of the episode's row."""
        return {"cost": self.cost} if self.cost else {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure before the first step."""
        if self.cost or trainer.global_step or batch_idx:
            return
        module: Any = pl_module
        if module.tuner.trains_itself:
            warnings.warn(f"CostMonitor: {module.tuner.name} makes steps of its own; no cost.", stacklevel=2)
            return
        if trainer.world_size > 1:
            rank_zero_warn(
                f"CostMonitor: a step on {trainer.world_size} devices is not timed, since they wait for each other; no "
                "cost. Use --trainer.devices 1 for it."
            )
            return
        if module.tuner.trained_parameters():
            self.cost = _measure(trainer, module, module.incoming(batch, "train"), self.pairs)


def _measure(trainer: Trainer, module: Any, batch: Any, pairs: int) -> dict[str, Any]:
    objective = module.objective
    state, trained = objective.get_extra_state(), module.tuner.trained_parameters()
    devices = [module.device] if module.device.type == "cuda" else []

    def step(*, suppressed: bool) -> None:
        # Not by `set_stage`, which drops the relations of the previous step outside of the stage.
        objective.progress = 0.5 if suppressed else None
        with trainer.precision_plugin.train_step_context():
            loss = module.terms(batch)["total"]
        loss.backward()
        module.zero_grad(set_to_none=True)

    with torch.random.fork_rng(devices):
        for _ in range(WARM_UP):
            for suppressed in (True, False):
                step(suppressed=suppressed)
        flops = {suppressed: _flops(step, suppressed) for suppressed in (True, False)}
        seconds = [
            {suppressed: _seconds(step, suppressed, module.device) for suppressed in order}
            for order in ([(True, False), (False, True)] * pairs)[:pairs]
        ]
    objective.set_extra_state(state)
    ratios = sorted(pair[True] / pair[False] for pair in seconds)
    own = {id(parameter): parameter.numel() for parameter in trained}
    return {
        "parameters": sum({id(each): each.numel() for each in module.parameters()}.values()),
        "trained_parameters": sum(own.values()),
        "gflops": flops[True] / 1e9,
        "gflops_without": flops[False] / 1e9,
        "flops_added": 100 * (flops[True] - flops[False]) / flops[False],
        "step_ms": 1e3 * median(pair[True] for pair in seconds),
        "step_ms_without": 1e3 * median(pair[False] for pair in seconds),
        "step_ratio": median(ratios),
        "step_ratio_interval": median_interval(ratios),
        "pairs": pairs,
    }


def _flops(step: Callable[..., None], suppressed: bool) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # it loads parts of torch that nothing else needs

    with FlopCounterMode(display=False) as counter:
        step(suppressed=suppressed)
    return int(counter.get_total_flops())


def _seconds(step: Callable[..., None], suppressed: bool, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    step(suppressed=suppressed)
    wait()
    return time.perf_counter() - start


def median_interval(values: list[float]) -> list[float]:
    """Return the ends of a 95% interval of the median, which are two of the sorted values.

    The number of values below the median is binomial with p = 1/2, whatever their distribution.
    """
    from scipy import stats  # type: ignore[import-untyped]

    ordered, count = sorted(values), len(values)
    place = int(stats.binom.ppf((1 - CONFIDENCE) / 2, count, 0.5))  # from 1; the probability of fewer is below 2.5 %
    return [ordered[place - 1], ordered[count - place]]
