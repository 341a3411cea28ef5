"""The temperature at which class probabilities can be read as confidences, fitted on held-out images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..lightning_modules.evaluation_metrics import Confidence, log_probabilities

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0
FEW_IMAGES = 50  # with fewer the temperature is rough


class FittedTemperature(NamedTuple):
    """A temperature, and what the held-out images say with and without it.

    Attributes:
        temperature: What the scores are divided by.
        images: Number of images.
        cross_entropy_before: Cross-entropy of the scores themselves, in nats.
        cross_entropy_after: The same with temperatures, each half of the images at that of the other half.
        calibration_error_before: Expected calibration error in percent, with 15 bins.
        calibration_error_after: The same with the temperatures of `cross_entropy_after`.
    """

    temperature: float
    images: int
    cross_entropy_before: float
    cross_entropy_after: float
    calibration_error_before: float
    calibration_error_after: float


def fit_temperature(scores: Tensor, labels: Tensor) -> FittedTemperature | None:
    """Fit the temperature on held-out images and measure it on halves of them.

    Args:
        scores: Logits [N, W].
        labels: Classes [N].

    Returns:
        None for fewer than two images or classes: nothing can be measured then.
    """
    scores, labels = scores.detach().cpu().double(), labels.cpu()
    if len(scores) < 2 or scores.shape[1] < 2:
        return None
    before = confidence_measures(scores, labels)
    # Class by class in turn, so that both halves have images of each class.
    order = labels.argsort(stable=True)
    halves, fitted = (order[0::2], order[1::2]), torch.empty_like(scores)
    for half, other in (halves, halves[::-1]):
        fitted[half] = scores[half] / best_temperature(scores[other], labels[other])
    after = confidence_measures(fitted, labels)
    return FittedTemperature(
        best_temperature(scores, labels),
        len(scores),
        before["cross_entropy"],
        after["cross_entropy"],
        before["calibration_error"],
        after["calibration_error"],
    )


def best_temperature(scores: Tensor, labels: Tensor) -> float:
    """Return the temperature of least cross-entropy with Platt's targets.

    The target of an image's class is (N + 1) / (N + 2), and the other classes share the rest (Platt 1999). With targets
    of 1, images that are all right would have a temperature of 0 and probabilities of 1. The cross-entropy is convex in
    1 / temperature, so that the root of its derivative is the only minimum.

    Args:
        scores: Logits [N, W] in float64.
        labels: Classes [N].

    Returns:
        The temperature from 0.01 to 100; 100 where the scores are no better than chance.
    """
    from scipy.optimize import brentq

    images, classes = scores.shape
    targets = torch.full_like(scores, 1 / ((images + 2) * (classes - 1)))
    targets[torch.arange(images), labels] = (images + 1) / (images + 2)
    # Only differences between the scores of an image matter.
    scores = scores - scores.amax(dim=1, keepdim=True)

    def slope(inverse: float) -> float:
        """Derivative of the mean cross-entropy with respect to 1 / temperature."""
        return float((((inverse * scores).softmax(dim=1) - targets) * scores).sum(dim=1).mean())

    least, most = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    if slope(least) >= 0:
        return MOST_TEMPERATURE
    return LEAST_TEMPERATURE if slope(most) <= 0 else 1 / float(brentq(slope, least, most))


def confidence_measures(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return `cross_entropy` in nats and `calibration_error` in percent of logits [N, W]; {} for no images."""
    kept = Confidence()
    if len(scores):
        kept.update(log_probabilities(scores[None]), labels, scores.argmax(dim=1))
    return kept.measures(len(scores))
