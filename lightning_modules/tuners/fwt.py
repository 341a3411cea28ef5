"""FWT: feature-wise transformation layers, for any tuner of the image tower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ...errors import DtrapError
from ..backbones.base import Backbone
from ..chunking import pass_seed
from .base import Tuner, hooked

# The dropout layers of `chunking` use seeds below it, so that no layer here repeats their draws.
_SEED_OFFSET = 2**62


class FeatureWiseTransformation(nn.Module):
    """Scale and shift features by noise per channel in training mode; the identity in evaluation mode.

    y = (1 + n1 softplus(gamma)) x + n2 softplus(beta) with standard normal n1, n2 [C] and softplus(x) =
    log(1 + exp(100 x)) / 100 (Tseng et al. 2020). Each forward pass draws once; all images and positions share the
    draw. `encode_in_chunks` counts as one pass, including all chunks and their recomputation.

    Args:
        channels: C.
        channel_dim: Dimension of the channels in the input: 1 for maps [B, C, H, W], -1 for tokens [B, T, C].
        position: A number that is unique among the layers of the model; part of the seed.

    Attributes:
        gamma: [C], 0.3; fixed.
        beta: [C], 0.5; fixed.
        next_noise: n1 [C] and n2 [C] that the next call uses instead of drawn ones; reset by that call.
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
        """Return features of the same shape."""
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


def _of_inner(name: str) -> Any:
    """A method or attribute of FWT that is the inner tuner's own."""
    return property(
        lambda fwt: getattr(fwt.inner, name),
        lambda fwt, value: setattr(fwt.inner, name, value),
        doc=f"`{name}` of the inner tuner.",
    )


class FWT(Tuner):
    """Feature-wise transformation layers in the image tower while another tuner is trained.

    In a ResNet the layers are where the authors put them: behind the last norm of every residual block and of its
    shortcut. FWT has not been defined for a ViT, or without a source domain: we propose the place behind the last norm
    of every image block. gamma = 0.3 and beta = 0.5 are the authors' initial values. They stay fixed, since learning
    them needs a second domain. They were chosen for batch norms and are untested with other norms.

    Args:
        tuner: The tuner to train; LoRA on the image tower if None.

    Raises:
        DtrapError: The tuner does not train the image tower, so that the layers would have no effect on it, or it makes
            its own steps, which bypass the layers.
    """

    references = ("tseng2020fwt",)

    @classmethod
    def cited(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the keys of the references, those of LoRA too where no other tuner is given."""
        return cls.references if arguments.get("tuner") else (*cls.references, "hu2022lora", "kalajdzievski2023rslora")

    def __init__(self, tuner: Tuner | None = None) -> None:
        super().__init__()
        if tuner is None:
            from .lora import LoRA  # here, so that FWT around another tuner does not need peft

            tuner = LoRA()
        if "vision" not in tuner.trains:
            raise DtrapError(
                f"FWT: the tuner {tuner.name} does not train the image tower, where the layers are. Use a tuner that "
                'does, such as LoRA(encoder="vision").'
            )
        if tuner.trains_itself:
            raise DtrapError(
                f"FWT: the tuner {tuner.name} makes its own steps, which bypass the layers. Use another tuner, such as "
                "LoRA."
            )
        self.inner = tuner
        self.layers = nn.ModuleList()
        self.name = f"fwt-{tuner.name}"
        self._norms: list[nn.Module] = []

    def attach(self, backbone: Backbone) -> None:
        """Attach the inner tuner and create a layer for each of the backbone's last norms.

        Raises:
            DtrapError: The inner tuner does not support this backbone, or the tower has no such norms.
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
        """The inner tuner's features [B, F], in training mode with the layers in the tower."""
        if not self.training or self._is_disabled:
            return self.inner.image_features(backbone, images)
        pairs = zip(self._norms, self.layers, strict=True)
        with hooked(norm.register_forward_hook(_behind(layer)) for norm, layer in pairs):
            return self.inner.image_features(backbone, images)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it, the backbone returns its zero-shot features."""
        with super().disabled(), self.inner.disabled():
            yield

    def make_room(self, state: dict[str, Tensor]) -> None:
        """Prepare the inner tuner for a saved state; in a module's state its names start with "inner."."""
        self.inner.make_room({name.removeprefix("inner."): value for name, value in state.items()})

    trains = _of_inner("trains")
    reset = _of_inner("reset")


# All other methods and attributes of a tuner are the inner one's as well. A `__getattr__` would not be called for them,
# since FWT inherits from Tuner. The adapter's state has no layers: they act in training only.
for _name in vars(Tuner).keys() - vars(FWT).keys():
    if not _name.startswith("_"):
        setattr(FWT, _name, _of_inner(_name))


def _layer_behind(norm: nn.Module, position: int) -> FeatureWiseTransformation:
    weight = norm.get_parameter("weight")
    layer = FeatureWiseTransformation(len(weight), 1 if isinstance(norm, nn.BatchNorm2d) else -1, position)
    return layer.to(weight)


def _behind(layer: nn.Module) -> Callable[..., Tensor]:
    return lambda module, inputs, output: layer(output)
