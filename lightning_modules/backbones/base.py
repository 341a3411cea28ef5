"""What a vision-language model must offer to be tuned here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

Tower = Literal["vision", "text"]


class Backbone(nn.Module, ABC):
    """A frozen pre-trained vision-language model: two towers into one feature space of width D.

    Every attention layer of the towers' blocks is a `SeparateAttention`, so that `q_proj`, `k_proj`, `v_proj` and
    `out_proj` are Linear layers of their own.

    Attributes:
        identifier: Which model and weights these are, for file names and adapter cards, such as
            "ViT-B-16-quickgelu/openai".
        image_size: Side of the square input image in pixels.
        image_mean: Mean per channel that the images are normalised with (images in [0, 1]).
        image_std: Standard deviation per channel, likewise.
        context_length: Number of tokens that a class prompt has room for, start and end tokens included.
        feature_dim: Feature width D.
        logit_bias: Bias of the model's own sigmoid loss (SigLIP), or None; it does not matter in a softmax.
    """

    identifier: str
    image_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    context_length: int
    feature_dim: int
    logit_bias: float | None

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """Image features [B, D], not normalised, of normalised images [B, 3, image_size, image_size]."""

    @abstractmethod
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text features [P, D], not normalised, of tokens [P, context_length]."""

    @abstractmethod
    def tokenize(self, prompts: list[str]) -> Tensor:
        """Tokens [P, context_length] (int64, on the CPU).

        Raises:
            DtrapError: A prompt has more tokens than the model has room for; the message names the prompt.
        """

    @abstractmethod
    def attention_layers(self, tower: Tower) -> list[str]:
        """Dotted names, within this module, of the `SeparateAttention` of every block of a tower, first block first.

        Attention-pool heads are not among them.
        """
