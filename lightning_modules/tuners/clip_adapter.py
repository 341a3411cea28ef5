"""CLIP-Adapter: a bottleneck on top of the frozen image feature."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...errors import DtrapError
from ..backbones.base import Backbone, Tower
from .base import Tuner, check_width, warmup_cosine


class CLIPAdapter(Tuner):
    """CLIP-Adapter (Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024).

    The image feature becomes ratio * ReLU(up(ReLU(down(x)))) + (1 - ratio) * x, with `down` [D/reduction, D] and `up`
    [D, D/reduction] trained, without biases. Both towers stay frozen; L_ad and L_ra act on the adapted feature.

    Args:
        ratio: Share of the adapter in the feature; 0 is zero-shot.
        reduction: D divided by the width of the bottleneck.

    Raises:
        DtrapError: `ratio` is not in [0, 1] or `reduction` not positive.
    """

    name = "clip-adapter"
    learning_rate = 2e-3
    down: nn.Parameter
    up: nn.Parameter

    def __init__(self, ratio: float = 0.2, reduction: int = 4) -> None:
        super().__init__()
        if not 0 <= ratio <= 1:
            raise DtrapError(f"CLIPAdapter: ratio is {ratio}; expected a share between 0 and 1.")
        if reduction < 1:
            raise DtrapError(f"CLIPAdapter: reduction is {reduction}; expected at least 1.")
        self.ratio = ratio
        self.reduction = reduction

    @property
    def trains(self) -> frozenset[Tower]:
        """No tower: the adapter stands on top of the image tower."""
        return frozenset()

    def attach(self, backbone: Backbone) -> None:
        """Make the adapter for the backbone's feature width.

        Raises:
            DtrapError: The bottleneck would have no width, or this tuner is attached to a backbone of another width.
        """
        width = backbone.feature_dim
        if hasattr(self, "down"):
            check_width(self, self.down.shape[1], backbone)
            return
        hidden = width // self.reduction
        if hidden == 0:
            raise DtrapError(
                f"CLIPAdapter: reduction is {self.reduction}, but the features of {backbone.identifier} have the width "
                f"{width}; expected at most {width}."
            )
        parameter = next(backbone.parameters())
        self.down = nn.Parameter(parameter.new_empty(hidden, width))
        self.up = nn.Parameter(parameter.new_empty(width, hidden))

    def reset(self, seed: int, num_classes: int) -> None:
        """Torch's default start of linear layers."""
        generator = Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in (self.down, self.up):
                parameter.copy_(nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=sqrt(5), generator=generator))

    def adapter_state(self) -> dict[str, Tensor]:
        """`down` and `up`."""
        return {"down": self.down, "up": self.up}

    def adapter_output(self, features: Tensor) -> Tensor:
        """What the adapter alone makes of image features [B, D]: [B, D], nowhere negative."""
        hidden = nn.functional.linear(features.to(self.down.dtype), self.down).relu()
        return nn.functional.linear(hidden, self.up).relu()

    def adapt_image_features(self, features: Tensor) -> Tensor:
        """[B, D]: the adapter's output mixed with the features themselves."""
        return self.ratio * self.adapter_output(features) + (1 - self.ratio) * features

    def optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer:
        """SGD with momentum 0.9 and weight decay 5e-4, as CoOp's configuration has it, which the authors follow."""
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=5e-4)

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler:
        """One epoch of warm-up, then a cosine per epoch; see `warmup_cosine`."""
        return warmup_cosine(optimizer, total_steps, steps_per_epoch)
