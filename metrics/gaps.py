"""How far the images and the texts lie apart: four measures of the modality gap."""

from __future__ import annotations

import torch
from torch import Tensor

from .feature_metric import FeatureMetric
from .rows import paired_texts, unit_rows_of_both


def modality_gap(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Compute |mean f - mean t|, the distance of the means of normalized image and text features.

    Source: Liang et al. 2022, "Mind the Gap", arXiv 2203.02053.

    Args:
        image_features: [N, D].
        text_features: [W, D]; texts of classes, or of the images one by one.

    Returns:
        A scalar from 0 to 2; NaN if a row is zero or not finite.
    """
    images, texts = unit_rows_of_both(image_features, text_features)
    return (images.mean(dim=0) - texts.mean(dim=0)).norm()


def gap_direction(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Compute g = (mean f - mean t) / |mean f - mean t|, the unit vector from the texts to the images.

    Source: Liang et al. 2022, arXiv 2203.02053.

    Args:
        image_features: [N, D].
        text_features: [W, D].

    Returns:
        [D]; NaN where both means are equal.
    """
    images, texts = unit_rows_of_both(image_features, text_features)
    gap = images.mean(dim=0) - texts.mean(dim=0)
    return gap / gap.norm()


def centroid_gap(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Compute |mean f - mean t|, the part of the distance of the pairs that one shift of all images can close.

    This is the modality gap, under the name that it has as a part of the distance of image and text: the mean over i of
    |f_i - t_i|^2 is centroid gap^2 + distribution gap^2. For this the texts must be those of the pairs,
    `text_features[labels]`.

    Source: Liu et al. 2026, "The Geometry of Compromise", arXiv 2604.00279: the distance of the mean vectors.

    Args:
        image_features: [N, D].
        text_features: [N, D], row i the text of image i; also [W, D].

    Returns:
        A scalar from 0 to 2.
    """
    return modality_gap(image_features, text_features)


def distribution_gap(image_features: Tensor, text_features: Tensor, labels: Tensor | None = None) -> Tensor:
    """Compute what is left of the distance of the pairs after both means have been moved to the origin.

    The root of the mean over i of |(f_i - mean f) - (t_i - mean t)|^2, of normalized features.

    Source: Liu et al. 2026, arXiv 2604.00279, describe it as the discrepancy that remains after the centroids are
    aligned. Their formula could not be checked: do not compare the values with published ones. In this form the mean
    squared distance of the pairs is exactly centroid gap^2 + distribution gap^2.

    Args:
        image_features: [N, D].
        text_features: [N, D], row i the text of image i; with `labels` [W, D].
        labels: [N], the row of each image's text.

    Returns:
        A scalar from 0 to 2.
    """
    images, texts = unit_rows_of_both(image_features, text_features)
    differences = images - paired_texts(labels, images, texts)
    return (differences - differences.mean(dim=0)).square().sum(dim=1).mean().sqrt()


def relative_modality_gap(image_features: Tensor, text_features: Tensor, labels: Tensor | None = None) -> Tensor:
    """Compute the distance of the pairs relative to the distances within images and within texts.

    P / (P + (I + T) / 2), where P is the mean cosine distance d(x, y) = (1 - cos(x, y)) / 2 of the images and their
    texts, I that of all pairs of two images, and T that of all pairs of two texts.

    Source: Schrodi et al. 2025, "Two Effects, One Trigger", arXiv 2404.07983, and the authors' code
    (lmb-freiburg/two-effects-one-trigger, `compute_rmg`). With class texts each text counts once in T, as there.

    Args:
        image_features: [N, D].
        text_features: [N, D], row i the text of image i; with `labels` [W, D], a row for each class.
        labels: [N], the row of each image's text.

    Returns:
        A scalar from 0 to 1; NaN for fewer than two images or texts.
    """
    images, texts = unit_rows_of_both(image_features, text_features)
    pairs = _cosine_distance((images * paired_texts(labels, images, texts)).sum(dim=1).mean())
    within = (_cosine_distance(_mean_cosine(images)) + _cosine_distance(_mean_cosine(texts))) / 2
    return pairs / (pairs + within)


def _cosine_distance(cosine: Tensor) -> Tensor:
    """Map cosines from 1 to -1 to distances from 0 to 1; rounding errors give no negative distance."""
    return ((1 - cosine) / 2).clamp_min(0)


def _mean_cosine(rows: Tensor) -> Tensor:
    """Mean cosine of all pairs of two different rows, from the norm of their sum; NaN for one row."""
    count = len(rows)
    if count < 2:
        return rows.new_tensor(torch.nan)
    return (rows.sum(dim=0).square().sum() - rows.square().sum()) / (count * (count - 1))


class ModalityGap(FeatureMetric):
    """Measures `modality_gap` between all images and the texts of `set_texts`."""

    higher_is_better = False
    plot_lower_bound = 0.0

    def compute(self) -> Tensor:
        """Return the modality gap, a scalar."""
        features, texts, _ = self._collected_with_texts()
        return modality_gap(features, texts)


class CentroidGap(FeatureMetric):
    """Measures `centroid_gap` between all images and their texts, so that each text counts once for each image."""

    higher_is_better = False
    plot_lower_bound = 0.0

    def compute(self) -> Tensor:
        """Return the centroid gap, a scalar."""
        features, texts, labels = self._collected_with_texts()
        return centroid_gap(features, paired_texts(labels, features, texts))


class DistributionGap(FeatureMetric):
    """Measures `distribution_gap` between all images and their texts."""

    higher_is_better = False
    plot_lower_bound = 0.0

    def compute(self) -> Tensor:
        """Return the distribution gap, a scalar."""
        return distribution_gap(*self._collected_with_texts())


class RelativeModalityGap(FeatureMetric):
    """Measures `relative_modality_gap` between all images and the texts of `set_texts`."""

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """Return the relative modality gap, a scalar."""
        return relative_modality_gap(*self._collected_with_texts())
