"""The interface of vision-language models that can be tuned."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ...errors import DtrapError
from ...keywords import KeepsArguments

Tower = Literal["vision", "text"]
Triple = tuple[float, float, float]


class Backbone(KeepsArguments, nn.Module, ABC):
    """A frozen pre-trained vision-language model: an image tower and a text tower with features of width D.

    Every attention layer of the towers' blocks has separate Linear layers named `q_proj`, `k_proj`, `v_proj` and
    `out_proj`. `FewShotClassifier` checks attributes, shapes and types and raises a DtrapError if they differ.

    Attributes:
        identifier: Model and weights, for file names and adapter cards, such as "ViT-B-16-quickgelu/openai".
        image_size: Side of the square input image in pixels.
        image_mean: Mean per channel for the normalization of images in [0, 1].
        image_std: Standard deviation per channel for the normalization.
        image_resize: How the model's own evaluation transform makes images square: "shortest" (shorter side, center
            crop), "squash" (straight to the square) or "longest" (longer side, padded).
        image_interpolation: "bicubic" or "bilinear", of the same transform.
        context_length: Maximum number of tokens of a prompt, including start and end tokens.
        feature_dim: Feature width D.
        logit_bias: Bias of the model's own sigmoid loss (SigLIP), or None; it has no effect in a softmax.
    """

    identifier: str
    image_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    context_length: int
    feature_dim: int
    logit_bias: float | None
    # Without annotations, which stand for what a subclass has to set: most models are evaluated as CLIP.
    image_resize = "shortest"
    image_interpolation = "bicubic"

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """Return image features [B, D], not normalized, of normalized images [B, 3, image_size, image_size]."""

    @abstractmethod
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return text features [P, D], not normalized, of tokens [P, context_length], or fewer if it `cuts_text`."""

    @abstractmethod
    def tokenize(self, prompts: list[str]) -> Tensor:
        """Return tokens [P, context_length] (int64, on the CPU).

        Raises:
            DtrapError: A prompt has more tokens than the context length; the message names the prompt.
        """

    @abstractmethod
    def attention_layers(self, tower: Tower) -> list[str]:
        """Return the dotted names, within this module, of the attention layer of every block of a tower, in order.

        Attention-pool heads are excluded.
        """

    @property
    def cuts_text(self) -> bool:
        """Whether `encode_text` takes [P, L] tokens that are cut behind the last of `text_ends`, for the same features.

        So it is in a causal text tower whose feature is read at the end token, and in one that masks the padding; False
        by default.
        """
        return False

    def text_ends(self, tokens: Tensor) -> Tensor:
        """Return the position [P] of the last token of each prompt that its feature needs; for models that `cuts_text`.

        Args:
            tokens: [P, context_length].
        """
        raise NotImplementedError

    def cut_text(self, tokens: Tensor) -> Tensor:
        """Return tokens [P, L] without what follows the longest prompt, if that does not change the features."""
        return tokens[:, : self.text_length(tokens)]

    def text_length(self, tokens: Tensor) -> int:
        """Return the number of tokens of the longest prompt; all of them unless the model `cuts_text`."""
        return int(self.text_ends(tokens).max()) + 1 if self.cuts_text and len(tokens) > 0 else tokens.shape[1]

    # For tuners that change the towers

    @abstractmethod
    def tower_parameters(self, tower: Tower) -> dict[str, nn.Parameter]:
        """Return all parameters of a tower, including its projection and embeddings, by dotted names in this module.

        The logit scale and bias belong to neither tower.
        """

    @property
    @abstractmethod
    def token_embedding(self) -> nn.Module:
        """The text tower's word embedding: tokens [P, L] -> [P, L, C], positions not yet added."""

    @abstractmethod
    def blocks(self, tower: Tower) -> list[nn.Module]:
        """Return the transformer blocks of a tower, in order; empty for a ResNet.

        A block takes tokens [B, T, C] as its first positional argument and returns such tokens, in some models as the
        first entry of a tuple.
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
        """The last norm of every residual block of the image tower; in a ResNet also those of the shortcuts."""

    @property
    def stages(self) -> list[nn.Module]:
        """The four stages of a ResNet image tower, which return maps [B, C, H, W]; empty by default."""
        return []

    @abstractmethod
    def project_image(self, pooled: Tensor) -> Tensor:
        """Apply the frozen projection into the feature space: [B, D].

        Args:
            pooled: [B, C] in the width of the blocks; for a ResNet a map [B, C, H, W] in the last stage's shape, which
                the attention pool reduces.
        """

    def encode_text_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Return text features [P, D] of word embeddings [P, L, C] that replace those of the tokens.

        Args:
            embeddings: Without positions.
            tokens: [P, L]; they determine the end of the text and the padding.
        """
        hook = self.token_embedding.register_forward_hook(lambda module, inputs, output: embeddings.to(output.dtype))
        with hook:
            return self.encode_text(tokens)

    # For subclasses

    def _check_length(self, prompt: str, length: int) -> None:
        """Raise a DtrapError if a prompt has more tokens than the context length."""
        if length > self.context_length:
            raise DtrapError(
                f"Prompt '{prompt}' has {length} tokens, but {self.identifier} has room for {self.context_length}. "
                "Shorten the class name, the template or the description."
            )

    def _check_vocabulary(self, tokens: Tensor, tokenizer: str, remedy: str) -> None:
        """Raise a DtrapError if a tokenizer returns tokens without an embedding."""
        vocabulary = len(next(self.token_embedding.parameters()))
        if tokens.numel() and int(tokens.max()) >= vocabulary:
            raise DtrapError(
                f"{tokenizer} returned token {int(tokens.max())}, but {self.identifier} has {vocabulary} tokens. "
                f"{remedy}"
            )


def checked_statistics(mean: Sequence[float], std: Sequence[float], source: object) -> tuple[Triple, Triple]:
    """Return mean and std of a model's files as tuples; raise a DtrapError if images cannot be normalized with them."""
    numbers = [
        isinstance(values, Sequence) and all(isinstance(v, int | float) for v in values) for values in (mean, std)
    ]
    sound = all(numbers) and len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
    if not sound:
        raise DtrapError(
            f"{source}: image mean {mean} and std {std}; expected three finite numbers each, the std above "
            "0. Correct the file."
        )
    return tuple(mean), tuple(std)  # type: ignore[return-value]


def square_side(size: int | Sequence[int], name: str) -> int:
    """Return the side of a model's input image; raise a DtrapError if the image is not square."""
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise DtrapError(f"'{name}' takes images of {height}x{width}; expected a model for square images.")
    return height
