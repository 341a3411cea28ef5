"""A linear head on the frozen image feature."""

from __future__ import annotations

from math import sqrt
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ...errors import check_one_of
from ..losses import normalize
from .base import TaskData, _ClassHead, draw

Start = Literal["text", "random"]


class LinearHead(_ClassHead):
    """Linear classification of the normalized image feature x: tau * (V x + b) with V [W, D] and b [W] trained.

    Both towers stay frozen, so L_ad and L_ra are constant.

    Args:
        start: "text" starts V from the normalized class texts and b from zero, which is zero-shot. "random" starts both
            as torch starts linear layers, uniform in +-1/sqrt(D).

    Raises:
        DtrapError: `start` is unknown.

    Attributes:
        weight: V [W, D].
        bias: b [W].
    """

    name = "linear-head"
    learning_rate = 1e-3
    side_by_side = True
    bias: nn.Parameter

    def __init__(self, start: Start = "text") -> None:
        super().__init__()
        check_one_of("LinearHead: start", start, get_args(Start))
        self.start = start
        self.needs_task = start == "text"

    def reset(self, seed: int, num_classes: int) -> None:
        """Start from a random head, or from zeros that `prepare_task` replaces with the texts."""
        self.make_head(num_classes)
        generator, bound = Generator().manual_seed(seed), 1 / sqrt(self.weight.shape[1])
        for parameter in (self.weight, self.bias):
            if self.start == "text":
                nn.init.zeros_(parameter)
            else:
                draw(parameter, nn.init.uniform_, -bound, bound, generator=generator)

    def prepare_task(self, task: TaskData) -> None:
        """Copy the class texts."""
        with torch.no_grad():
            self.weight.copy_(normalize(task.text_features))

    def logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
        """Return the logits [B, W]: tau * (V x + b); the texts are not used."""
        with torch.autocast(image_features.device.type, enabled=False):
            x = normalize(image_features)
            return logit_scale * functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))
