"""LDC: adapters on several levels of the image tower, and logits corrected for confusion between classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod, sqrt
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from ...errors import DtrapError
from .. import losses
from ..backbones.base import Backbone, Tower
from ..finite import predicted_classes
from .base import Tuner, attach_once, draw, hooked

_LEVEL_WEIGHTS = (0.1, 0.2, 0.3, 0.4)
_VIT_HIDDEN = 2048
_BETAS = tuple(step / 50 for step in range(51))


class BranchLogits(NamedTuple):
    """The logits of LDC's branches.

    Attributes:
        clip: c [B, W], the scaled cosines to the class texts.
        mlp: m [B, W], from the fused levels only.
        deconfused: a [B, W], c corrected for its confusion between classes.
        gate: g [B, 1] in (0, 1).
        total: g * m + (1 - g) * a.
    """

    clip: Tensor
    mlp: Tensor
    deconfused: Tensor
    gate: Tensor
    total: Tensor


class LDC(Tuner):
    """Logits deconfusion (Li et al., "Logits DeConfusion with CLIP for Few-Shot Learning", CVPR 2025).

    Each of four levels of the frozen image tower has an adapter. Their outputs are pooled, added up with the weights
    0.1, 0.2, 0.3, 0.4, and mapped by the frozen projection: z. One MLP computes the logits m from z, others correct the
    zero-shot logits c to a; the prediction is beta * m + (1 - beta) * a.

    The levels are the four stages of a ResNet, or the blocks n-7, n-5, n-3, n-1 of a transformer with n blocks (with 4
    to 6 blocks the last four, which is our choice: the authors' code fails there). They are cached per image if images
    are encoded once: 2.4 MB for ViT-B/16, 6 MB for RN50, in float32.

    L_ad and L_ra act on z. A row of `image_features` is the image feature x and the tapped levels; a row of
    `adapt_image_features` is x and z.

    Args:
        beta: Share of m in the logits, unless a validation split chooses it from 0, 0.02, ..., 1.

    Raises:
        DtrapError: `beta` is not in [0, 1].

    Attributes:
        levels: The four adapters.
        mlp, of_clip, of_fused, correction, gate: The MLPs, allocated for the number of classes in `reset`.
    """

    name = "ldc"
    references = ("li2025ldc",)
    weighs_classes = True
    chooses = True
    least_rows = 2  # batch norms
    learning_rate = 1e-4
    side_by_side = True
    trains: frozenset[Tower] = frozenset()  # the adapters are applied to levels of a frozen tower
    _project: Callable[[Tensor], Tensor]
    beta: Tensor
    levels: nn.ModuleList

    def __init__(self, beta: float = 0.5) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise DtrapError(f"LDC: beta is {beta}; expected a share between 0 and 1.")
        self.initial_beta = beta
        self.register_buffer("beta", torch.tensor(beta))
        self._shapes: list[torch.Size] = []
        self._width = self._classes = 0

    # Start

    @attach_once
    def attach(self, backbone: Backbone) -> None:
        """Create the adapters of the levels; one blank image shows the levels' shapes.

        Raises:
            DtrapError: The image tower has fewer than four levels, their widths differ, or this tuner is attached to
                another backbone.
        """
        taps, parameter = tapped_modules(backbone), next(backbone.parameters())
        blank = parameter.new_zeros(1, 3, backbone.image_size, backbone.image_size)
        backbone.eval()
        with torch.no_grad(), _outputs_of(taps) as levels:
            backbone.encode_image(blank)
        self._shapes = [level.shape[1:] for level in levels]
        self._width, self._project = backbone.feature_dim, backbone.project_image
        adapters = nn.ModuleList(_level_adapter(shape, self._shapes[-1]) for shape in self._shapes)
        self.levels = adapters.to(parameter).train(self.training)

    def _make_heads(self, classes: int) -> None:
        """Create the layers whose shapes depend on the number of classes, unless they have these shapes."""
        if self._classes == classes:
            return
        self._classes = classes
        width = self._width
        hidden = _VIT_HIDDEN if len(self._shapes[0]) == 2 else width
        parameter = next(self.levels.parameters())
        self.mlp = _bottleneck(width, hidden, classes)
        self.of_clip = _bottleneck(classes, width, width)
        self.of_fused = _bottleneck(width, width, width)
        self.correction = _bottleneck(width, width, classes)
        self.gate = _bottleneck(width, width, 1)
        for head in (self.mlp, self.of_clip, self.of_fused, self.correction, self.gate):
            head.to(parameter).train(self.training)

    def reset(self, seed: int, num_classes: int) -> None:
        """Reset linear layers and convolutions to torch's default, and norms and beta to their initial values."""
        self._make_heads(num_classes)
        generator = Generator().manual_seed(seed)
        self.beta.fill_(self.initial_beta)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                draw(module.weight, nn.init.kaiming_uniform_, sqrt(5), generator=generator)
            elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
                module.reset_parameters()

    def make_room(self, state: dict[str, Tensor]) -> None:
        """Allocate the layers for the saved number of classes."""
        if "mlp.3.weight" in state:
            self._make_heads(len(state["mlp.3.weight"]))

    # From images to logits

    def image_features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return [B, F]: the image feature x [B, D], then the flattened tapped levels."""
        with _outputs_of(tapped_modules(backbone)) as levels:
            features = backbone.encode_image(images)
        return torch.cat([features, *(level.flatten(1) for level in levels)], dim=1)

    def zero_shot_features(self, features: Tensor) -> Tensor:
        """Return the image feature x [B, D]."""
        return features[:, : self._width]

    def level_features(self, features: Tensor) -> list[Tensor]:
        """Return the four adapted and pooled levels of `image_features` [B, F]: [B, C], or [B, C, h, w] in a ResNet."""
        flat = features[:, self._width :].split([prod(shape) for shape in self._shapes], dim=1)
        adapted = [
            adapter(level.unflatten(1, shape))
            for adapter, level, shape in zip(self.levels, flat, self._shapes, strict=True)
        ]
        return [level.mean(dim=1) if level.dim() == 3 else level for level in adapted]

    def adapt_image_features(self, features: Tensor) -> Tensor:
        """Return [B, 2D]: x, then z, the projection of the weighted sum of the levels."""
        levels = zip(_LEVEL_WEIGHTS, self.level_features(features), strict=True)
        fused = self._project(sum(weight * level for weight, level in levels))  # type: ignore[arg-type]
        return torch.cat([self.zero_shot_features(features), fused], dim=1)

    def related_features(self, image_features: Tensor) -> Tensor:
        """Return the projected levels z [B, D]."""
        return image_features[:, self._width :]

    def branch_logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float) -> BranchLogits:
        """Return the logits of every branch for x and z [B, 2D] and texts [W, D]."""
        feature, fused = image_features.split(self._width, dim=1)
        clip = logit_scale * losses.cosines(feature, text_features)
        # In half precision, as autocast would compute them, logits are tied.
        with torch.autocast(fused.device.type, enabled=False):
            fused = fused.to(self.mlp[0].weight.dtype)  # type: ignore[arg-type]
            mlp, gate = self.mlp(fused), self.gate(fused).sigmoid()
            deconfused = clip + self.correction(self.of_clip(clip.to(fused.dtype)) + self.of_fused(fused))
        return BranchLogits(clip, mlp, deconfused, gate, gate * mlp + (1 - gate) * deconfused)

    def logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
        """Return the logits [B, W]: beta * m + (1 - beta) * a."""
        branches = self.branch_logits(image_features, text_features, logit_scale)
        return self.beta * branches.mlp + (1 - self.beta) * branches.deconfused

    # Training

    def loss_terms(
        self, image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float
    ) -> dict[str, Tensor]:
        """Return CE(m), CE(a), CE(total) and the mean distances |m - c|, |a - c|, named as in the authors' code.

        Raises:
            DtrapError: A training batch of one row, for which a batch norm has no variance.
        """
        if self.training and len(labels) == 1:
            raise DtrapError(
                "LDC: a training batch has 1 image, but its batch norms need at least 2. Choose a batch size that "
                "leaves no single image at the end of an epoch, or drop the last batch."
            )
        clip, mlp, deconfused, _, total = self.branch_logits(image_features, text_features, logit_scale)
        return {
            "ce_mlp": self.cross_entropy(mlp, labels),
            "ce_ada": self.cross_entropy(deconfused, labels),
            "ce_total": self.cross_entropy(total, labels),
            "l1_mlp": (mlp - clip).abs().mean(),
            "l1_ada": (deconfused - clip).abs().mean(),
        }

    def classification_loss(
        self, image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float
    ) -> Tensor:
        """Return the sum of `loss_terms`."""
        return torch.stack(list(self.loss_terms(image_features, text_features, labels, logit_scale).values())).sum()

    def choose(self, image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float) -> None:
        """Choose beta from 0, 0.02, ..., 1: the smallest of the most accurate."""
        branches = self.branch_logits(image_features, text_features, logit_scale)
        fused = (beta * branches.mlp + (1 - beta) * branches.deconfused for beta in _BETAS)
        correct = [int((predicted_classes(logits) == labels).sum()) for logits in fused]
        self.beta.fill_(_BETAS[correct.index(max(correct))])

    def optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer:
        """Return AdamW with eps 1e-4 and weight decay 1e-4, as in the authors' code."""
        return torch.optim.AdamW(parameters, lr=learning_rate, eps=1e-4, weight_decay=1e-4)

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler:
        """Return a cosine to 0 over all steps, stepped every step."""
        return CosineAnnealingLR(optimizer, T_max=total_steps)


def tapped_modules(backbone: Backbone) -> list[nn.Module]:
    """Return the four stages or blocks of the image tower that LDC taps, in order.

    Raises:
        DtrapError: The tower has neither four stages nor four blocks.
    """
    modules = backbone.stages or backbone.blocks("vision")
    if len(modules) < 4:
        raise DtrapError(
            f"LDC: the image tower of {backbone.identifier} has {len(modules)} blocks or stages; LDC adapts four "
            "levels. Use a transformer of at least 4 blocks or a ResNet CLIP, or another tuner."
        )
    return modules[-7::2] if len(modules) >= 7 else modules[-4:]


@contextmanager
def _outputs_of(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Within it, the modules' outputs are appended to the list, in the order of their calls."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    with hooked(module.register_forward_hook(keep) for module in modules):
        yield outputs


def _level_adapter(shape: torch.Size, last: torch.Size) -> nn.Sequential:
    """Create the adapter of a level: tokens [B, T, C] keep their shape, maps [B, C, H, W] get the last level's."""
    if len(shape) == 3 == len(last):
        channels, size = last[0], tuple(last[1:])
        convolution = skip_init(nn.Conv2d, shape[0], channels, kernel_size=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(size))
    if len(shape) == 2 and shape[-1] == last[-1]:
        return nn.Sequential(skip_init(nn.Linear, shape[1], shape[1], bias=False), nn.LayerNorm(shape[1]), nn.ReLU())
    raise DtrapError(
        f"LDC: a level of the image tower has the shape {list(shape)}, the last one {list(last)}; expected tokens "
        "[T, C] of one width C, or the maps [C, H, W] of a ResNet's stages. Use another backbone or another tuner."
    )


def _bottleneck(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Create two linear layers, whose values `LDC.reset` draws."""
    first = skip_init(nn.Linear, inputs, hidden, bias=False)
    last = skip_init(nn.Linear, hidden, outputs, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), last)
