"""Fine-tuning of whole towers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import DtrapError
from ..backbones.base import Backbone, Tower
from ..chunking import encode_in_chunks
from ..text_head import ClassPrompts, average_prompts
from .base import Tuner, another_backbone

_TOWERS: dict[str, tuple[Tower, ...]] = {"vision": ("vision",), "text": ("text",), "both": ("vision", "text")}


class FullFineTuning(Tuner):
    """Every parameter of the chosen towers is trained, norms and embeddings included.

    What is trained is a copy that stands in for the tower's parameters within this tuner's own calls. The backbone
    keeps its original weights: for zero-shot, for the next task and for other tuners. It stays in evaluation mode: no
    dropout, and the statistics of batch norms do not move. CLIP's logit scale and bias belong to no tower.

    Args:
        encoder: Which towers are trained.

    Raises:
        DtrapError: `encoder` is none of those.
    """

    name = "full"
    learning_rate = 1e-5
    merges_into_backbone = True

    def __init__(self, encoder: Literal["vision", "text", "both"] = "vision") -> None:
        super().__init__()
        if encoder not in _TOWERS:
            raise DtrapError(f"FullFineTuning: encoder is {encoder!r}; expected one of {', '.join(_TOWERS)}.")
        self.encoder = encoder
        self.parameters_trained = nn.ParameterList()
        self._names: list[str] = []
        self._originals: Callable[[Tower], dict[str, nn.Parameter]] | None = None

    @property
    def trains(self) -> frozenset[Tower]:
        """The towers of `encoder`."""
        return frozenset(_TOWERS[self.encoder])

    def attach(self, backbone: Backbone) -> None:
        """Copy the towers' parameters.

        Raises:
            DtrapError: This tuner is attached to another backbone.
        """
        if self._originals is not None:
            if self._originals != backbone.tower_parameters:
                raise another_backbone(self)
            return
        self._originals = backbone.tower_parameters
        for name, parameter in self._original_parameters().items():
            self._names.append(name)
            self.parameters_trained.append(nn.Parameter(parameter.detach().clone()))

    def _original_parameters(self) -> dict[str, nn.Parameter]:
        if self._originals is None:
            raise DtrapError("FullFineTuning: the tuner has no backbone yet; call attach(backbone) first.")
        return {name: value for tower in _TOWERS[self.encoder] for name, value in self._originals(tower).items()}

    def reset(self, seed: int, num_classes: int) -> None:
        """Start from the backbone's weights; nothing is drawn."""
        originals = self._original_parameters()
        with torch.no_grad():
            for name, parameter in self.adapter_state().items():
                parameter.copy_(originals[name])

    def adapter_state(self) -> dict[str, Tensor]:
        """The trained parameters by their names in the backbone."""
        return dict(zip(self._names, self.parameters_trained, strict=True))

    def image_features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Features [B, D] of the trained image tower, or of the frozen one where only the texts are trained."""
        return self._with_trained(backbone, backbone.encode_image, images)

    def text_features(self, backbone: Backbone, prompts: ClassPrompts, chunk: int | None = None) -> Tensor:
        """Class text features [W, D] of the trained text tower, or of the frozen one."""
        encoded = encode_in_chunks(
            lambda tokens: self._with_trained(backbone, backbone.encode_text, tokens), prompts.tokens, chunk
        )
        return average_prompts(encoded, prompts.per_class)

    def _with_trained(self, backbone: Backbone, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        trained = {f"backbone.{name}": value for name, value in self.adapter_state().items()}
        return functional_call(_Encoder(backbone, encode), trained, (inputs,))


class _Encoder(nn.Module):
    """An encoding method of the backbone as `forward`, which is what `functional_call` calls."""

    def __init__(self, backbone: Backbone, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.backbone = backbone
        self.encode = encode

    def forward(self, inputs: Tensor) -> Any:
        return self.encode(inputs)
