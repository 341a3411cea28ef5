"""FWT: feature-wise transformation layers, a wrapper around any tuner of the image tower."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...errors import DtrapError
from ..backbones.base import Backbone, Tower
from ..chunking import pass_seed
from ..text_head import ClassPrompts
from .base import TaskData, Tuner

# Dropout layers draw from seeds below it, see `chunking`.
_SEED_OFFSET = 2**62


class FeatureWiseTransformation(nn.Module):
    """Scales and shifts features by noise, per channel, in training mode; does nothing in evaluation mode.

    y = (1 + n1 softplus(gamma)) x + n2 softplus(beta) with standard normal n1, n2 [C] and softplus(x) =
    log(1 + exp(100 x)) / 100 (Tseng et al. 2020). There is one draw for each forward pass, shared by all images and
    positions; `encode_in_chunks` is one pass, chunks and their recomputation included.

    Args:
        channels: C.
        channel_dim: Dimension of the input that they are: 1 of maps [B, C, H, W], -1 of tokens [B, T, C].
        position: A number that no other such layer of the model has.

    Attributes:
        gamma: [C], 0.3; fixed.
        beta: [C], 0.5; fixed.
        next_noise: n1 [C] and n2 [C] for the next call in place of drawn ones, used up by that call.
    """

    gamma: Tensor
    beta: Tensor

    def __init__(self, channels: int, channel_dim: int = 1, position: int = 0) -> None:
        super().__init__()
        self.channel_dim = channel_dim
        self.position = position
        self.register_buffer("gamma", torch.full((channels,), 0.3), persistent=False)
        self.register_buffer("beta", torch.full((channels,), 0.5), persistent=False)
        self.next_noise: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape."""
        if not self.training:
            return x
        scale_noise, shift_noise = self._noise()
        scale = 1 + scale_noise * F.softplus(self.gamma, beta=100)
        shift = shift_noise * F.softplus(self.beta, beta=100)
        shape = [1] * x.dim()
        shape[self.channel_dim] = -1
        return x * scale.view(shape).to(x.dtype) + shift.view(shape).to(x.dtype)

    def _noise(self) -> tuple[Tensor, Tensor]:
        given, self.next_noise = self.next_noise, None
        if given is not None:
            return given
        seed, generator = pass_seed(), None
        if seed is not None:
            generator = Generator(self.gamma.device).manual_seed(_SEED_OFFSET + seed + 7919 * self.position)
        noise = torch.randn(2, len(self.gamma), generator=generator, device=self.gamma.device)
        scale_noise, shift_noise = noise.to(self.gamma.dtype).unbind()
        return scale_noise, shift_noise


class FWT(Tuner):
    """Feature-wise transformation around another tuner, which is trained through the noise.

    In a ResNet the layers are where the authors have them, behind the last norm of every residual block and that of its
    shortcut. Nobody defines FWT for a ViT, nor without a source domain: the place behind the last norm of every image
    block is our proposal. gamma = 0.3 and beta = 0.5 are the authors' start and stay fixed, since learning them needs a
    second domain; they were set for batch norms and are untested elsewhere.

    Args:
        tuner: What is trained; LoRA on the image tower where None.

    Raises:
        DtrapError: The tuner does not train the image tower, so that there is nothing to train through the layers, or
            makes its steps itself, past them.
    """

    def __init__(self, tuner: Tuner | None = None) -> None:
        super().__init__()
        if tuner is None:
            from .lora import LoRA  # here, so that FWT around another tuner does without peft

            tuner = LoRA()
        inner = tuner
        if "vision" not in inner.trains:
            raise DtrapError(
                f"FWT: the tuner {inner.name} does not train the image tower; the layers are in there and need what "
                'they disturb to be trained. Use a tuner that does, such as LoRA(encoder="vision").'
            )
        if inner.trains_itself:
            raise DtrapError(
                f"FWT: the tuner {inner.name} makes its steps itself, past the layers. Use one that does not, such as "
                "LoRA."
            )
        self.inner = inner
        self.layers = nn.ModuleList()
        self.name = f"fwt-{inner.name}"
        self.transductive = inner.transductive
        self.needs_task = inner.needs_task
        self.query_views = inner.query_views
        self.learning_rate = inner.learning_rate
        self.own_prompts = inner.own_prompts
        self.chooses = inner.chooses
        self.merges_into_backbone = inner.merges_into_backbone
        self._norms: list[nn.Module] = []
        self._disabled = False

    @property
    def trains(self) -> frozenset[Tower]:
        """The towers that the inner tuner trains."""
        return self.inner.trains

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the inner tuner."""
        return self.inner.settings

    def attach(self, backbone: Backbone) -> None:
        """Attach the inner tuner and make a layer for each of the backbone's last norms.

        Raises:
            DtrapError: The inner tuner does not go with this backbone, or the tower has no such norms.
        """
        self.inner.attach(backbone)
        norms = backbone.last_norms
        if not norms:
            raise DtrapError(
                f"FWT: the image tower of {backbone.identifier} has no residual blocks with norms for the layers. "
                "Use another backbone, or the tuner without FWT."
            )
        if norms == self._norms:
            return
        self._norms = norms
        self.layers = nn.ModuleList(_layer_behind(norm, position) for position, norm in enumerate(norms))
        self.layers.train(self.training)

    def image_features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """The inner tuner's features [B, F], in training mode through the layers."""
        if not self.training or self._disabled:
            return self.inner.image_features(backbone, images)
        with ExitStack() as hooks:
            for norm, layer in zip(self._norms, self.layers, strict=True):
                hooks.callback(norm.register_forward_hook(_behind(layer)).remove)
            return self.inner.image_features(backbone, images)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it, the backbone gives its zero-shot features."""
        self._disabled = True
        try:
            with self.inner.disabled():
                yield
        finally:
            self._disabled = False

    # Everything else is the inner tuner's

    def reset(self, seed: int, num_classes: int) -> None:
        """See the inner tuner."""
        self.inner.reset(seed, num_classes)

    def adapter_state(self) -> dict[str, Tensor]:
        """That of the inner tuner: the layers act in training only."""
        return self.inner.adapter_state()

    def make_room(self, state: dict[str, Tensor]) -> None:
        """See the inner tuner; in a module's state its names begin with "inner."."""
        self.inner.make_room({name.removeprefix("inner."): value for name, value in state.items()})

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """See the inner tuner."""
        self.inner.load_adapter_state(state)

    def trained_parameters(self) -> list[nn.Parameter]:
        """See the inner tuner."""
        return self.inner.trained_parameters()

    def prepare_task(self, task: TaskData) -> None:
        """See the inner tuner."""
        self.inner.prepare_task(task)

    def choose(self, image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float) -> None:
        """See the inner tuner."""
        self.inner.choose(image_features, text_features, labels, logit_scale)

    def adapt_image_features(self, features: Tensor) -> Tensor:
        """See the inner tuner."""
        return self.inner.adapt_image_features(features)

    def zero_shot_features(self, features: Tensor) -> Tensor:
        """See the inner tuner."""
        return self.inner.zero_shot_features(features)

    def related_features(self, image_features: Tensor) -> Tensor:
        """See the inner tuner."""
        return self.inner.related_features(image_features)

    def text_features(self, backbone: Backbone, prompts: ClassPrompts, chunk: int | None = None) -> Tensor:
        """See the inner tuner."""
        return self.inner.text_features(backbone, prompts, chunk)

    def logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
        """See the inner tuner."""
        return self.inner.logits(image_features, text_features, logit_scale)

    def classification_loss(
        self, image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float
    ) -> Tensor:
        """See the inner tuner."""
        return self.inner.classification_loss(image_features, text_features, labels, logit_scale)

    def optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer | list[Optimizer]:
        """See the inner tuner."""
        return self.inner.optimizer(parameters, learning_rate)

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler | None:
        """See the inner tuner."""
        return self.inner.scheduler(optimizer, total_steps, steps_per_epoch)


def _layer_behind(norm: nn.Module, position: int) -> FeatureWiseTransformation:
    weight = norm.get_parameter("weight")
    layer = FeatureWiseTransformation(len(weight), 1 if isinstance(norm, nn.BatchNorm2d) else -1, position)
    return layer.to(weight)


def _behind(layer: nn.Module) -> Callable[..., Tensor]:
    return lambda module, inputs, output: layer(output)
