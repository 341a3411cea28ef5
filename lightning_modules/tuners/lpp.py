"""LP++: a linear probe blended with the class texts, with step sizes derived from the support features."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from ...errors import check_at_least
from ..losses import normalize
from .base import TaskData, _ClassHead, draw

_MOMENTUM = 0.9


class BlockDescent(Optimizer):
    """Gradient descent with momentum, in which each block of parameters has its own update interval.

    In every step the velocity of a parameter becomes momentum * velocity + gradient. The parameter moves by
    -lr * velocity in every `every`-th step only. With momentum 1 the velocity is the sum of all gradients so far.

    Args:
        blocks: Parameter groups, each with `params`, `lr`, `momentum` and `every`.
    """

    def __init__(self, blocks: list[dict[str, Any]]) -> None:
        super().__init__(blocks, defaults={})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; return the result of the closure, which computes the gradients, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for block in self.param_groups:
            for parameter in block["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(steps=0, velocity=torch.zeros_like(parameter))
                state["steps"] += 1
                state["velocity"].mul_(block["momentum"]).add_(parameter.grad)
                if state["steps"] % block["every"] == 0:
                    parameter.sub_(state["velocity"], alpha=block["lr"])
        return loss


class LPPlusPlus(_ClassHead):
    """LP++ (Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024).

    The logits of a normalized image feature x are x Wc^T + b + alpha * (x t^T), with class weights Wc [W, D], a bias
    b [W] and a factor alpha [W] on the cosines to the texts, which replaces tau: Wc = b = 0 and alpha = tau is
    zero-shot. All three are trained on the full batch. Image features are constant, so L_ad and L_ra are too.

    With F [N, D] the normalized support rows f (all views of all images) and t [W, D] the normalized texts:
    Wc starts from the sum of each class's rows, b is uniform in +-1/sqrt(D), and alpha is 250 * the mean over the
    classes of the mean f.t of the class's rows. The step size of Wc and b is 4 N / lambda_max(F^T F), with momentum
    0.9. That of alpha is N / (4 max_k sum_i (f_i.t_k)^2). alpha moves in every `alpha_every`-th step only, along the
    sum of its gradients since the start, as in the authors' code, which never clears them. With class weights, a row
    counts by its weight in both step sizes.

    The rate (`learning_rate`, 1 by default) multiplies both derived step sizes. The authors keep the iteration that is
    best on a validation split, the last one of equals: `dtrap.callbacks.KeepBest(ties="last")`.

    Args:
        alpha_every: Number of steps between two moves of alpha.

    Raises:
        DtrapError: `alpha_every` is below 1.

    Attributes:
        weight: Wc [W, D].
        bias: b [W].
        alpha: alpha [W].
        weight_step: Derived step size of Wc and b.
        alpha_step: Derived step size of alpha.
    """

    name = "lpp"
    references = ("huang2024lpp",)
    needs_task = True
    learning_rate = 1.0
    side_by_side = True
    per_class = ("bias", "alpha")
    bias: nn.Parameter
    alpha: nn.Parameter
    weight_step: Tensor
    alpha_step: Tensor

    def __init__(self, alpha_every: int = 10) -> None:
        super().__init__()
        check_at_least("LPPlusPlus: alpha_every", alpha_every, 1, "step")
        self.alpha_every = alpha_every
        self.register_buffer("weight_step", torch.tensor(0.0))
        self.register_buffer("alpha_step", torch.tensor(0.0))

    # Start

    def reset(self, seed: int, num_classes: int) -> None:
        """Draw the bias and set the rest to zero; `prepare_task` derives it."""
        self.make_head(num_classes)
        bound = 1 / sqrt(self.weight.shape[1])
        draw(self.bias, nn.init.uniform_, -bound, bound, generator=Generator().manual_seed(seed))
        for value in (self.weight, self.alpha, self.weight_step, self.alpha_step):
            nn.init.zeros_(value)

    def prepare_task(self, task: TaskData) -> None:
        """Derive the start of Wc and alpha, and both step sizes, from the support rows."""
        features, texts = normalize(cast(Tensor, task.encoded)), normalize(task.text_features)
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            membership = nn.functional.one_hot(task.labels, len(texts)).to(features.dtype)
            similarities = features @ texts.to(features.dtype).T
            own_class = (membership * similarities).sum(dim=0) / membership.sum(dim=0)
            self.weight.copy_(membership.T @ features)
            self.alpha.fill_(float(250 * own_class.nanmean()))  # nan for a class without images
            if self.class_weights is not None:  # both bounds are of the loss, in which a row counts by its weight
                rows = self.class_weights.to(features).sqrt()[task.labels, None]
                features, similarities = rows * features, rows * similarities
            largest = torch.linalg.eigvalsh(features.T @ features)[-1]
            self.weight_step.copy_(4 * len(features) / largest)
            self.alpha_step.copy_(len(features) / (4 * similarities.square().sum(dim=0).max()))

    # From features to logits

    def logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
        """Return the logits x Wc^T + b + alpha * (x t^T) [B, W]; alpha replaces the logit scale."""
        with torch.autocast(image_features.device.type, enabled=False):
            x = normalize(image_features)
            weight, bias, alpha = (value.to(x.dtype) for value in (self.weight, self.bias, self.alpha))
            return nn.functional.linear(x, weight, bias) + alpha * (x @ normalize(text_features).to(x.dtype).T)

    # Training

    def optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer:
        """Return gradient descent with the derived step sizes times `learning_rate`."""
        probe = [parameter for parameter in parameters if parameter is not self.alpha]
        weight_rate, alpha_rate = (learning_rate * float(step) for step in (self.weight_step, self.alpha_step))
        return BlockDescent(
            [
                {"params": probe, "lr": weight_rate, "momentum": _MOMENTUM, "every": 1},
                {"params": [self.alpha], "lr": alpha_rate, "momentum": 1.0, "every": self.alpha_every},
            ]
        )

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> None:
        """Return None: the step sizes are constant."""
