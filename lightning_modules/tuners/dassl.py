"""The training of CoOp's code."""

from __future__ import annotations

import math
import warnings
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class DasslTraining:
    """Optimizer and schedule of CoOp's code, which runs on Dassl, and of the methods whose code is built on it."""

    def optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer:
        """Return SGD with momentum 0.9 and weight decay 5e-4, also on biases."""
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=5e-4)

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler:
        """Return CoOp's schedule, stepped every step but changing per epoch: one epoch at 1e-5, then a cosine.

        With E epochs in total, epoch e >= 1 has the rate lr / 2 * (1 + cos(pi * (e - 1) / E)). The cosine starts after
        the warm-up but spans all E epochs, so it never reaches 0 (Dassl's schedule, as CoOp uses it).
        """
        epochs = max(-(-total_steps // steps_per_epoch), 1)
        if epochs == 1:
            warnings.warn(
                "the whole training of 1 epoch is the warm-up at the rate 1e-5, so that almost nothing is trained. Set "
                "--trainer.max_epochs 2 or more.",
                stacklevel=2,
            )

        def factor(rate: float, step: int) -> float:
            epoch = step // steps_per_epoch
            return 1e-5 / rate if epoch == 0 else 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, [partial(factor, g["lr"]) for g in optimizer.param_groups])
