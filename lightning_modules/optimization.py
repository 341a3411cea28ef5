"""The optimizer and the schedule of a module: the tuner's own, or those that replace them."""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import DtrapError


def make_optimizer(module: Any, parameters: list[nn.Parameter]) -> Any:
    """Return the optimizer of a FewShotClassifier for these parameters; the tuner's own may be a list."""
    if module.own_optimizer is not None:
        return module.own_optimizer(parameters)
    rate = module.learning_rate if module.learning_rate is not None else module.tuner.learning_rate
    return module.tuner.optimizer(parameters, rate)


def with_schedule(module: Any, optimizer: Optimizer) -> Any:
    """Return an optimizer with its schedule, stepped every step, as Lightning takes them.

    Raises:
        DtrapError: The schedule needs the length of the run, which is unknown.
    """
    if module.own_lr_scheduler is not None:
        scheduler: Any = module.own_lr_scheduler(optimizer)
    elif module.final_rate is not None:
        total = _run_length(module)[0]
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total, eta_min=module.final_rate)
    else:
        scheduler = module.tuner.scheduler(optimizer, *_run_length(module))
    if scheduler is None:
        return optimizer
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _run_length(module: Any) -> tuple[int, int]:
    """Return the number of optimizer steps of the run and of one epoch."""
    total = module.trainer.estimated_stepping_batches
    if not isfinite(total) or total < 0:  # -1 is Lightning's answer for a loader without length
        raise DtrapError(
            f"the schedule of the tuner {module.tuner.name} needs the length of the run, which is unknown. Set "
            "Trainer(max_steps=...), or max_epochs if the loader has a length, or pass an lr_scheduler."
        )
    batches = module.trainer.num_training_batches
    if not isfinite(batches):
        return int(total), int(total)
    return int(total), max(-(-int(batches) // module.trainer.accumulate_grad_batches), 1)
