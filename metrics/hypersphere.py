"""Alignment and uniformity of features on the unit hypersphere."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .feature_metric import FeatureMetric
from .rows import paired_texts, unit_rows, unit_rows_of_both

_BLOCK = 1024  # rows that are compared with all others at once


def alignment(image_features: Tensor, text_features: Tensor, labels: Tensor, alpha: float = 2) -> Tensor:
    """Compute the mean over i of |f_i - t_{y_i}|^alpha, the distance of normalized images from their texts.

    Source: Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on
    the Hypersphere", arXiv 2005.10242; the pairs are images and their class texts.

    Args:
        image_features: [N, D].
        text_features: [W, D].
        labels: [N], the row of each image's text.
        alpha: Power of the distance.

    Returns:
        A scalar, 0 for images that lie on their texts.
    """
    images, texts = unit_rows_of_both(image_features, text_features)
    return (images - paired_texts(labels, images, texts)).norm(dim=1).pow(alpha).mean()


def uniformity(features: Tensor, t: float = 2) -> Tensor:
    """Compute the log of the mean over the pairs i < j of exp(-t |f_i - f_j|^2), of normalized features.

    Source: Wang and Isola 2020, arXiv 2005.10242.

    Args:
        features: [N, D], of images or of texts.
        t: Factor on the squared distances.

    Returns:
        A scalar, 0 where all rows are equal and less the more evenly they are spread; NaN for one row.
    """
    rows = unit_rows(features, "features")
    if len(rows) < 2:
        return rows.new_tensor(torch.nan)
    sums = [_log_sum(rows[start : start + _BLOCK], rows[start:], t) for start in range(0, len(rows), _BLOCK)]
    return torch.stack(sums).logsumexp(dim=0) - math.log(len(rows) * (len(rows) - 1) / 2)


def _log_sum(block: Tensor, rows: Tensor, t: float) -> Tensor:
    """Log of the sum over the pairs of row i of `block` with row j > i of `rows`, which starts with the block."""
    exponents = -t * (2 - 2 * block @ rows.T)
    later = torch.ones_like(exponents, dtype=torch.bool).triu(diagonal=1)
    return exponents.masked_fill(~later, -torch.inf).flatten().logsumexp(dim=0)


class Alignment(FeatureMetric):
    """Measures `alignment` of all images with their texts.

    Args:
        alpha: Power of the distance.
        **kwargs: As for every torchmetrics `Metric`.
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, alpha: float = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = alpha

    def compute(self) -> Tensor:
        """Return the alignment, a scalar."""
        return alignment(*self._collected_with_texts(), self.alpha)


class Uniformity(FeatureMetric):
    """Measures `uniformity` of all images.

    Args:
        t: Factor on the squared distances.
        **kwargs: As for every torchmetrics `Metric`.
    """

    higher_is_better = False
    plot_upper_bound = 0.0

    def __init__(self, t: float = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.t = t

    def compute(self) -> Tensor:
        """Return the uniformity, a scalar."""
        return uniformity(self._collected()[0], self.t)
