"""What a vision-language model must offer to be tuned here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

Tower = Literal["vision", "text"]


class Backbone(nn.Module, ABC):
    """A frozen pre-trained vision-language model: two towers into one feature space of width D.

    Every attention layer of the towers' blocks has Linear layers of its own called `q_proj`, `k_proj`, `v_proj` and
    `out_proj`.

    Attributes:
        identifier: Which model and weights these are, for file names and adapter cards, such as
            "ViT-B-16-quickgelu/openai".
        image_size: Side of the square input image in pixels.
        image_mean: Mean per channel that the images are normalized with (images in [0, 1]).
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
        """Image features [B, D], not normalized, of normalized images [B, 3, image_size, image_size]."""

    @abstractmethod
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text features [P, D], not normalized, of tokens [P, context_length]."""

    @abstractmethod
    def tokenize(self, prompts: list[str]) -> Tensor:
        """Tokens [P, context_length] (int64, on the CPU).

        Raises:
            DtrapError: A prompt has more tokens than the model has room for; the message names the prompt.
        """

    @abstractmethod
    def attention_layers(self, tower: Tower) -> list[str]:
        """Dotted names, within this module, of the attention layer of every block of a tower, first block first.

        Attention-pool heads are not among them.
        """

    # For tuners that go into the towers

    @abstractmethod
    def tower_parameters(self, tower: Tower) -> dict[str, nn.Parameter]:
        """All parameters of a tower by their dotted names within this module, its projection and embeddings included.

        The logit scale and bias belong to neither tower.
        """

    @property
    @abstractmethod
    def token_embedding(self) -> nn.Module:
        """The text tower's word embedding: tokens [P, L] -> [P, L, C], positions not yet added."""

    @abstractmethod
    def blocks(self, tower: Tower) -> list[nn.Module]:
        """The transformer blocks of a tower, first block first; empty for a ResNet.

        A block takes tokens [B, T, C] as its first positional argument and gives such tokens, some in a tuple.
        """

    @property
    @abstractmethod
    def image_entrance(self) -> nn.Module:
        """A module whose input and output are the image tokens [B, T, C] before the first block, positions added.

        In CLIP that is the norm before the blocks (`ln_pre`).
        """

    @property
    @abstractmethod
    def last_norms(self) -> list[nn.Module]:
        """The last norm of every residual block of the image tower; in a ResNet that of the shortcuts too."""

    @property
    @abstractmethod
    def stages(self) -> list[nn.Module]:
        """The four stages of a ResNet image tower, each giving maps [B, C, H, W]; empty for others."""

    @abstractmethod
    def project_image(self, pooled: Tensor) -> Tensor:
        """The frozen projection into the feature space: [B, D].

        Args:
            pooled: [B, C] in the width of the blocks; for a ResNet a map [B, C, H, W] of the last stage's shape, which
                goes through the attention pool.
        """

    def encode_text_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Text features [P, D] of word embeddings [P, L, C] in place of those of the tokens.

        Args:
            embeddings: Positions not added.
            tokens: [P, L]; tell where the text ends and what is padding.
        """
        handle = self.token_embedding.register_forward_hook(lambda module, inputs, output: embeddings.to(output.dtype))
        try:
            return self.encode_text(tokens)
        finally:
            handle.remove()
