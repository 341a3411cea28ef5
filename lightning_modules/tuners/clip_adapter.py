"""CLIP-Adapter: a bottleneck on top of the frozen image feature."""

from __future__ import annotations

from math import sqrt

from torch import Generator, Tensor, nn

from ...errors import DtrapError, check_at_least
from ..backbones.base import Backbone, Tower
from .base import DasslTraining, Tuner, check_width, draw


class CLIPAdapter(DasslTraining, Tuner):
    """CLIP-Adapter (Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024).

    The image feature becomes ratio * ReLU(up(ReLU(down(x)))) + (1 - ratio) * x, with `down` [D/reduction, D] and `up`
    [D, D/reduction] trained, without biases. Both towers stay frozen; L_ad and L_ra act on the adapted feature. The
    authors' code uses CoOp's optimizer and schedule.

    Args:
        ratio: Share of the adapter in the feature; 0 is zero-shot.
        reduction: D divided by the width of the bottleneck.

    Raises:
        DtrapError: `ratio` is not in [0, 1], or `reduction` is not positive.
    """

    name = "clip-adapter"
    references = ("gao2024clipadapter",)
    learning_rate = 2e-3
    side_by_side = True
    trains: frozenset[Tower] = frozenset()  # the adapter is applied to the output of a frozen tower
    down: nn.Parameter
    up: nn.Parameter

    def __init__(self, ratio: float = 0.2, reduction: int = 4) -> None:
        super().__init__()
        if not 0 <= ratio <= 1:
            raise DtrapError(f"CLIPAdapter: ratio is {ratio}; expected a share between 0 and 1.")
        check_at_least("CLIPAdapter: reduction", reduction, 1)
        self.ratio = ratio
        self.reduction = reduction

    def attach(self, backbone: Backbone) -> None:
        """Create the adapter for the backbone's feature width.

        Raises:
            DtrapError: `reduction` is larger than the width, or this tuner is attached to a backbone of another width.
        """
        width = backbone.feature_dim
        if hasattr(self, "down"):
            check_width(self, self.down.shape[1], backbone)
            return
        hidden = width // self.reduction
        if hidden == 0:
            raise DtrapError(
                f"CLIPAdapter: reduction is {self.reduction}; expected at most {width}, the feature width of "
                f"{backbone.identifier}."
            )
        parameter = next(backbone.parameters())
        self.down = nn.Parameter(parameter.new_empty(hidden, width))
        self.up = nn.Parameter(parameter.new_empty(width, hidden))
        self.reset(0, 0)  # so that a module without a fit has numbers, too

    def reset(self, seed: int, num_classes: int) -> None:
        """Start as torch starts linear layers."""
        generator = Generator().manual_seed(seed)
        for parameter in (self.down, self.up):
            draw(parameter, nn.init.kaiming_uniform_, sqrt(5), generator=generator)

    def adapter_output(self, features: Tensor) -> Tensor:
        """Return the adapter's output [B, D] for image features [B, D], without the residual; never negative."""
        hidden = nn.functional.linear(features.to(self.down.dtype), self.down).relu()
        return nn.functional.linear(hidden, self.up).relu()

    def adapt_image_features(self, features: Tensor) -> Tensor:
        """Return [B, D]: the adapter's output mixed with the features."""
        return self.ratio * self.adapter_output(features) + (1 - self.ratio) * features
