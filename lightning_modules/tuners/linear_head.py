"""A linear head on the frozen image feature."""

from __future__ import annotations

from math import sqrt
from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ...errors import check_one_of
from ..backbones.base import Backbone, Tower
from ..losses import normalize
from .base import TaskData, Tuner, check_width

Start = Literal["text", "random"]


class LinearHead(Tuner):
    """Linear classification of the normalized image feature x: tau * (V x + b) with V [W, D] and b [W] trained.

    Both towers stay frozen, so L_ad and L_ra are constant.

    Args:
        start: "text" starts V from the normalized class texts and b from zero, which is zero-shot. "random" starts both
            as torch starts linear layers, uniform in +-1/sqrt(D).

    Raises:
        DtrapError: `start` is unknown.
    """

    name = "linear-head"
    learning_rate = 1e-3
    trains: frozenset[Tower] = frozenset()
    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, start: Start = "text") -> None:
        super().__init__()
        check_one_of("LinearHead: start", start, get_args(Start))
        self.start = start
        self.needs_task = start == "text"

    def attach(self, backbone: Backbone) -> None:
        """Create a head of the feature width, without classes.

        Raises:
            DtrapError: This tuner is attached to a backbone with another feature width.
        """
        if hasattr(self, "weight"):
            check_width(self, self.weight.shape[1], backbone)
            return
        parameter = next(backbone.parameters())
        self.weight = nn.Parameter(parameter.new_empty(0, backbone.feature_dim))
        self.bias = nn.Parameter(parameter.new_empty(0))

    def _make_head(self, classes: int) -> None:
        if len(self.weight) != classes:
            self.weight = nn.Parameter(self.weight.new_empty(classes, self.weight.shape[1]))
            self.bias = nn.Parameter(self.bias.new_empty(classes))

    def reset(self, seed: int, num_classes: int) -> None:
        """Start from a random head, or from zeros that `prepare_task` replaces with the texts."""
        self._make_head(num_classes)
        generator, bound = Generator().manual_seed(seed), 1 / sqrt(self.weight.shape[1])
        with torch.no_grad():
            for parameter in (self.weight, self.bias):
                start = torch.zeros(parameter.shape)
                if self.start == "random":
                    start.uniform_(-bound, bound, generator=generator)
                parameter.copy_(start)

    def prepare_task(self, task: TaskData) -> None:
        """Copy the class texts."""
        with torch.no_grad():
            self.weight.copy_(normalize(task.text_features))

    def adapter_state(self) -> dict[str, Tensor]:
        """Return V [W, D] and b [W]."""
        return {"weight": self.weight, "bias": self.bias}

    def make_room(self, state: dict[str, Tensor]) -> None:
        """Allocate the head for the saved number of classes."""
        if "weight" in state:
            self._make_head(len(state["weight"]))

    def logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
        """Return the logits [B, W]: tau * (V x + b); the texts are not used."""
        with torch.autocast(image_features.device.type, enabled=False):
            x = normalize(image_features)
            return logit_scale * functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))
