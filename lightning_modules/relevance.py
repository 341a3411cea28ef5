"""Relevance maps of a tuned model: where in an image it finds the text of a class, with and without the tuner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import DtrapError
from ..metrics.relevance import Similarity, gradient_relevance, patch_text_relevance
from .few_shot_classifier import FewShotClassifier
from .tuners.base import Tuner

LARGEST_PASS = 16  # images; the attention of all blocks is in memory


def text_map(module: FewShotClassifier, images: Tensor, similarity: Similarity = "query+key") -> Tensor:
    """Return the cosine of every image patch to every class text, with the last block's attention replaced.

    Within `module.zero_shot()` it is the backbone's own map; otherwise image and text features are the tuner's. See
    `dtrap.metrics.patch_text_relevance`. Nothing is trained, and no random number is drawn.

    Args:
        module: The model, with its classes set.
        images: Normalized images [B, 3, H, W].
        similarity: What replaces the attention.

    Returns:
        [B, W, h, w], float32, on the CPU.

    Raises:
        DtrapError: The backbone has no transformer blocks, or the tuner's image features are not in the space of the
            texts.
    """
    check_blocks(module)
    check_text_space(module, images[:1])
    with _evaluated(module), torch.no_grad():
        texts = module.text_features()

        def encode(part: Tensor) -> Tensor:
            if module.is_zero_shot:
                with module.tuner.disabled():
                    return module.backbone.encode_image(part)
            # In one pass: `module.image_features` would encode the images in chunks of `image_chunk`.
            return module.tuner.adapt_image_features(module.tuner.image_features(module.backbone, part))

        blocks = module.backbone.blocks("vision")
        maps = [
            patch_text_relevance(encode, blocks, part, texts, similarity=similarity) for part in _passes(module, images)
        ]
    return torch.cat(maps).float().cpu()


def gradient_map(module: FewShotClassifier, images: Tensor, classes: Tensor, first_block: int = -1) -> Tensor:
    """Return the relevance of every image patch to the logit of a class, by gradient-weighted attention.

    Within `module.zero_shot()` the logit is the backbone's own. See `dtrap.metrics.gradient_relevance`.

    Args:
        module: The model, with its classes set.
        images: Normalized images [B, 3, H, W].
        classes: [B], the class of each image's map.
        first_block: The block that the product starts with; -1 is the last one.

    Returns:
        [B, h, w], at least 0, float32, on the CPU.

    Raises:
        DtrapError: The backbone has no transformer blocks.
    """
    check_blocks(module)
    blocks, maps = module.backbone.blocks("vision"), []
    with _evaluated(module):
        with torch.no_grad():
            texts = module.text_features()
        first = 0
        for part in _passes(module, images):
            chosen = classes[first : first + len(part), None].to(part.device)
            first += len(part)

            def score(part: Tensor, chosen: Tensor = chosen) -> Tensor:
                features, scale = module.image_features(part), module.objective.logit_scale
                if module.is_zero_shot:
                    logits = Tuner.logits(module.tuner, features, texts, scale)
                else:
                    logits = module.tuner.logits(features, texts, scale)
                return logits.gather(1, chosen)[:, 0]

            maps.append(gradient_relevance(score, blocks, part, first_block=first_block))
    return torch.cat(maps).float().cpu()


def predictions(module: FewShotClassifier, images: Tensor) -> Tensor:
    """Return the predicted classes [B] of normalized images [B, 3, H, W], on the CPU."""
    with _evaluated(module), torch.no_grad():
        return torch.cat([module(part) for part in _passes(module, images)]).argmax(dim=-1).cpu()


def check_blocks(module: FewShotClassifier) -> None:
    """Raise a DtrapError if the image tower has no transformer blocks."""
    if not module.backbone.blocks("vision"):
        raise DtrapError(
            f"relevance maps need an image tower of transformer blocks; {module.backbone.identifier} has none (a "
            "ResNet?). Use a vision transformer, such as ViT-B-16-quickgelu."
        )


def check_text_space(module: FewShotClassifier, image: Tensor) -> None:
    """Raise a DtrapError if the tuner compares more with the texts than the image tower's feature.

    Args:
        module: The model.
        image: Any normalized image [1, 3, H, W].
    """
    (part,) = _passes(module, image)
    with _evaluated(module), torch.no_grad():
        width = module.tuner.image_features(module.backbone, part).shape[1]
    if width != module.backbone.feature_dim:
        raise DtrapError(
            f"the tuner {module.tuner.name} reads {width} values of an image, more than the feature of width "
            f"{module.backbone.feature_dim}, so that a patch has no feature of its own to compare with the texts. Use "
            "the gradient map."
        )


@contextmanager
def _evaluated(module: FewShotClassifier) -> Iterator[None]:
    """Within it, the module is in evaluation mode; afterwards torch's random numbers go on as before."""
    training = module.training
    module.train(False)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        module.train(training)


def _passes(module: FewShotClassifier, images: Tensor) -> tuple[Tensor, ...]:
    """Split images into parts that a pass encodes at once, on the device and in the precision of the backbone."""
    weight = next(module.backbone.parameters())
    return images.to(weight).split(min(module.image_chunk or LARGEST_PASS, LARGEST_PASS))
