"""The logit scale that fits best, and what loss and gap shift are at that scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .feature_metric import FeatureMetric
from .gap_shift import SHIFTS, Sides, gap_shift_curve
from .gaps import gap_direction
from .rows import text_labels, unit_rows_of_both

_LARGEST = 1000.0


def fitted_scale(image_features: Tensor, text_features: Tensor, labels: Tensor, *, largest: float = _LARGEST) -> float:
    """Find the logit scale of least cross-entropy of the images against the texts, from 0 to `largest`.

    It says how confident the cosines may be read. The cross-entropy is convex in the scale, so that the root of its
    derivative, which Brent's method encloses, is the only minimum.

    Args:
        image_features: [N, D].
        text_features: [W, D].
        labels: [N], the row of each image's text.
        largest: The largest scale.

    Returns:
        The scale. `largest` means that the loss still falls there, as where every image is nearest to its own text; 0
        that the cosines are no better than chance; NaN that every scale has the same loss, as with a single text, or
        that a row is zero or not finite.
    """
    from scipy.optimize import brentq

    if not 0 < largest < math.inf:  # also NaN
        raise ValueError(f"largest is {largest}; expected a finite number above 0.")
    images, texts = unit_rows_of_both(image_features, text_features)
    labels = text_labels(labels, images, texts)
    cosines = (images @ texts.T).detach().cpu().double()
    own = cosines.gather(1, labels.cpu()[:, None])
    margins = cosines - own
    if bool(margins.isnan().any()) or float((cosines - cosines[:, :1]).abs().max()) < 1e-12:
        return math.nan

    def slope(scale: float) -> float:
        """Derivative of the mean cross-entropy."""
        return float(((scale * margins).softmax(dim=1) * margins).sum(dim=1).mean())

    if slope(0.0) >= 0:
        return 0.0
    return float(brentq(slope, 0.0, largest)) if slope(largest) > 0 else largest


class CrossFittedScale(NamedTuple):
    """What the images of one half say at the scale that fits the other half best.

    Attributes:
        scale: Mean of the two fitted scales.
        cross_entropy: Mean over all images, each at the scale of the other half.
        gap_drop: loss(0) - least loss of the gap shift, of the loss that is meant over all images in the same way.
        images: Number of images.
    """

    scale: float
    cross_entropy: float
    gap_drop: float
    images: int


def cross_fitted_scale(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    shifts: Sequence[float] | Tensor = SHIFTS,
    *,
    sides: Sides = "both",
    largest: float = _LARGEST,
) -> CrossFittedScale:
    """Measure loss and gap shift at a scale that was fitted to other images, so that both are held out.

    The images of each class are dealt to two halves in turn, without any draw. Both halves are shifted along the gap of
    the whole set.

    Args:
        image_features: [N, D].
        text_features: [W, D].
        labels: [N], the row of each image's text.
        shifts: d of the gap shift.
        sides: What is moved: "both", or the "image" features alone.
        largest: The largest scale; see `fitted_scale`.

    Returns:
        `scale`, `cross_entropy` and `gap_drop`; NaN for a single image or a single text.
    """
    images, texts = unit_rows_of_both(image_features, text_features)
    labels = text_labels(labels, images, texts)
    order = labels.argsort(stable=True)
    halves = (order[0::2], order[1::2])
    if not len(halves[1]):
        return CrossFittedScale(math.nan, math.nan, math.nan, len(images))
    direction = gap_direction(images, texts)
    scales = [fitted_scale(images[half], texts, labels[half], largest=largest) for half in halves]
    if any(map(math.isnan, scales)):
        return CrossFittedScale(math.nan, math.nan, math.nan, len(images))
    cross_entropy, curve = 0.0, torch.zeros(())
    for half, scale in zip(halves, reversed(scales), strict=True):
        share = len(half) / len(images)
        measured = gap_shift_curve(
            images[half], texts, labels[half], shifts, sides=sides, direction=direction, logit_scale=scale
        )
        cross_entropy += share * float(measured.unshifted_loss)
        curve = curve + share * measured.loss.detach().cpu()
    return CrossFittedScale(sum(scales) / 2, cross_entropy, cross_entropy - float(curve.min()), len(images))


class FittedScale(FeatureMetric):
    """Measures `fitted_scale` of all images and the texts of `set_texts`.

    Args:
        largest: The largest scale.
        **kwargs: As for every torchmetrics `Metric`.
    """

    higher_is_better = None  # it is a property of the features, best where it is the scale in use
    plot_lower_bound = 0.0

    def __init__(self, largest: float = _LARGEST, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.largest = largest

    def compute(self) -> Tensor:
        """Return the scale, a scalar."""
        features, texts, labels = self._collected_with_texts()
        return torch.tensor(fitted_scale(features, texts, labels, largest=self.largest), device=self.device)
