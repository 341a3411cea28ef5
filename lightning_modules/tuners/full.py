"""Full fine-tuning of one or both towers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import DtrapError, check_one_of
from ..backbones.base import Backbone, Tower
from ..chunking import encode_in_chunks
from ..text_head import ClassPrompts, average_prompts
from .base import ENCODERS, Tuner, attach_once


class FullFineTuning(Tuner):
    """Train every parameter of the chosen towers, including norms and embeddings.

    The trained parameters are copies that replace the tower's parameters in this tuner's calls. The backbone keeps its
    original weights for zero-shot, for the next task and for other tuners. It stays in evaluation mode: no dropout, and
    the statistics of batch norms do not change. CLIP's logit scale and bias are not part of a tower.

    Args:
        encoder: The towers to train.

    Raises:
        DtrapError: `encoder` is unknown.
    """

    name = "full"
    learning_rate = 1e-5
    merges_into_backbone = True

    def __init__(self, encoder: Literal["vision", "text", "both"] = "vision") -> None:
        super().__init__()
        check_one_of("FullFineTuning: encoder", encoder, ENCODERS)
        self.encoder = encoder
        self.parameters_trained = nn.ParameterList()
        self._originals: dict[str, nn.Parameter] = {}

    @property
    def trains(self) -> frozenset[Tower]:
        """The towers of `encoder`."""
        return frozenset(ENCODERS[self.encoder])

    @attach_once
    def attach(self, backbone: Backbone) -> None:
        """Copy the towers' parameters.

        Raises:
            DtrapError: This tuner is attached to another backbone.
        """
        for tower in ENCODERS[self.encoder]:
            self._originals |= backbone.tower_parameters(tower)
        self.parameters_trained.extend(nn.Parameter(value.detach().clone()) for value in self._originals.values())

    def reset(self, seed: int, num_classes: int) -> None:
        """Copy the backbone's weights; nothing is random."""
        if not self._originals:
            raise DtrapError("FullFineTuning: the tuner has no backbone; call attach(backbone) first.")
        with torch.no_grad():
            for name, parameter in self.adapter_state().items():
                parameter.copy_(self._originals[name])

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the trained parameters by their names in the backbone."""
        return dict(zip(self._originals, self.parameters_trained, strict=True))

    def image_features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return features [B, D] of the trained image tower, or of the frozen one if only the text tower is trained."""
        return self._with_trained(backbone, backbone.encode_image, images)

    def text_features(self, backbone: Backbone, prompts: ClassPrompts, chunk: int | None = None) -> Tensor:
        """Return class text features [W, D] of the trained text tower, or of the frozen one."""
        encoded = encode_in_chunks(
            lambda tokens: self._with_trained(backbone, backbone.encode_text, tokens), prompts.used_tokens, chunk
        )
        return average_prompts(encoded, prompts.per_class)

    def _with_trained(self, backbone: Backbone, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        trained = {f"backbone.{name}": value for name, value in self.adapter_state().items()}
        return functional_call(_Encoder(backbone, encode), trained, (inputs,))


class _Encoder(nn.Module):
    """An encoding method of the backbone as `forward`, since `functional_call` calls nothing else."""

    def __init__(self, backbone: Backbone, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.backbone = backbone
        self.encode = encode

    def forward(self, inputs: Tensor) -> Any:
        return self.encode(inputs)
