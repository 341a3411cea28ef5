"""Checks and unit rows that all measures share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return float64, in which all measures are computed, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def check_features(features: Any, name: str = "image_features") -> Tensor:
    """Return a feature matrix [rows, width] as a tensor, or raise a ValueError that names its shape."""
    features = torch.as_tensor(features)
    if features.dim() != 2 or 0 in features.shape[1:]:
        raise ValueError(f"{name} has the shape {list(features.shape)}; expected [rows, width].")
    if features.is_complex() or features.dtype == torch.bool:
        raise ValueError(f"{name} has the type {features.dtype}; expected real numbers.")
    return features


def unit_rows(features: Any, name: str = "image_features") -> Tensor:
    """Divide the rows [rows, width] by their L2 norm, in float64.

    A logit is 100 times a cosine: in float32 its rounding errors would be larger than the differences that matter.
    Autocast leaves float64 as it is. A row without a direction (zeros, or a value that is not finite) becomes NaN, and
    with it every measure of this row.
    """
    features = check_features(features, name)
    if not len(features):
        raise ValueError(f"{name} has the shape {list(features.shape)}; expected at least one row.")
    rows = features.to(exact_dtype(features.device))
    # First to about 1 by a power of two, which rounds nothing: squares of very small or large values are 0 or infinite.
    largest = rows.detach().abs().amax(dim=1, keepdim=True)
    rows = rows * largest.log2().floor().neg().exp2()
    return rows / rows.norm(dim=1, keepdim=True)


def unit_rows_of_both(image_features: Any, text_features: Any) -> tuple[Tensor, Tensor]:
    """Return the unit rows of images [N, D] and texts [W, D] on the device of the images."""
    images = unit_rows(image_features)
    texts = unit_rows(text_features, "text_features").to(images.device)
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"image_features has the shape {list(images.shape)} and text_features {list(texts.shape)}; expected the "
            "same width."
        )
    return images, texts


def check_labels(labels: Any, rows: int) -> Tensor:
    """Return labels [rows] of integers as int64, or raise a ValueError that names their shape or type."""
    labels = torch.as_tensor(labels)
    if labels.shape != (rows,):
        raise ValueError(f"labels has the shape {list(labels.shape)}; expected [{rows}], one class for each image.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels has the type {labels.dtype}; expected integers.")
    return labels.long()


def text_labels(labels: Any, images: Tensor, texts: Tensor) -> Tensor:
    """Return labels [N] on the device of the images, each the index of a text."""
    labels = check_labels(labels, len(images)).to(images.device)
    if not bool(((labels >= 0) & (labels < len(texts))).all()):
        raise ValueError(
            f"labels has values from {int(labels.min())} to {int(labels.max())}; expected 0 to {len(texts) - 1}, the "
            "rows of text_features."
        )
    return labels


def paired_texts(labels: Any | None, images: Tensor, texts: Tensor) -> Tensor:
    """Return the text [N, D] of each image: `texts[labels]`, or without labels `texts`, row by row."""
    if labels is not None:
        return texts[text_labels(labels, images, texts)]
    if len(images) != len(texts):
        raise ValueError(
            f"image_features has {len(images)} rows and text_features {len(texts)}; expected pairs. Pass labels, the "
            "row of each image's text."
        )
    return texts
