"""The measures that `AlignmentMonitor` reports, from the features of one set of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .. import metrics
from ..metrics.features import Features
from ..metrics.gap_shift import SHIFTS


class Measured:
    """Every measure of one set of features, computed when it is asked for; the costly parts once.

    All but the scatter ratio are of the plain rows: with one image a class, only the views have a scatter within it.

    Args:
        features: Images, class texts and labels.
        logit_scale: tau, the scale of cross-entropy and gap shift.
    """

    def __init__(self, features: Features, logit_scale: float) -> None:
        self.every, self.texts, self.every_label = features.images, features.texts, features.labels
        plain = slice(None) if features.plain is None else features.plain
        self.images, self.labels = self.every[plain], self.every_label[plain]
        self.scale = logit_scale

    def value(self, name: str) -> float | None:
        """Return a measure; None where it has no finite value for these features."""
        try:
            value = float(MEASURES[name](self))
        except ValueError:  # too few images or classes for this measure, or a tuner's features of another width
            return None
        return value if abs(value) < float("inf") else None  # no NaN either

    @cached_property
    def curve(self) -> Any:
        """The gap shift at the objective's scale."""
        return metrics.gap_shift_curve(self.images, self.texts, self.labels, SHIFTS, logit_scale=self.scale)

    @cached_property
    def agreement(self) -> Any:
        """Rank correlation and divergence of the relations."""
        return metrics.relation_agreement(self.images, self.texts, self.labels)

    @cached_property
    def fitted(self) -> Any:
        """Scale, loss and gap drop where each half of the images is measured at the scale that fits the other best.

        Raises:
            ValueError: A class has a single image, so that one half lacks it.
        """
        if int(self.labels.bincount(minlength=len(self.texts)).min()) < 2:
            raise ValueError("expected two images of every class or more")
        return metrics.cross_fitted_scale(self.images, self.texts, self.labels, SHIFTS)

    def loss(self) -> Tensor:
        """Return the mean cross-entropy of the scaled cosines."""
        cosines = F.normalize(self.images.double(), dim=1) @ F.normalize(self.texts.double(), dim=1).T
        return F.cross_entropy(self.scale * cosines, self.labels)


MEASURES: dict[str, Callable[[Measured], Any]] = {
    "modality_gap": lambda m: metrics.modality_gap(m.images, m.texts),
    "centroid_gap": lambda m: metrics.centroid_gap(m.images, m.texts[m.labels]),
    "distribution_gap": lambda m: metrics.distribution_gap(m.images, m.texts[m.labels]),
    "relative_modality_gap": lambda m: metrics.relative_modality_gap(m.images, m.texts, m.labels),
    "gap_drop": lambda m: m.curve.drop,
    "least_shift": lambda m: m.curve.least_shift,
    "alignment": lambda m: metrics.alignment(m.images, m.texts, m.labels),
    "uniformity": lambda m: metrics.uniformity(m.images),
    "scatter_ratio": lambda m: metrics.scatter_ratio(m.every, m.every_label),
    "nearest_prototype_accuracy": lambda m: metrics.nearest_prototype_accuracy(m.images, m.labels),
    "relation_rank_correlation": lambda m: m.agreement.rank_correlation,
    "relation_divergence": lambda m: m.agreement.divergence,
    "cross_entropy": lambda m: m.loss(),
    "fitted_scale": lambda m: m.fitted.scale,
    "fitted_cross_entropy": lambda m: m.fitted.cross_entropy,
    "fitted_gap_drop": lambda m: m.fitted.gap_drop,
}


def measure(
    features: Features, names: Sequence[str], logit_scale: float, *, curve: bool = False
) -> tuple[dict[str, float | None], dict[str, list[float]] | None]:
    """Return the measures by name, and if wanted the curve of the gap shift.

    Args:
        features: Images, class texts and labels.
        names: Measures, of `MEASURES`.
        logit_scale: tau.
        curve: Whether to return `shifts`, `distance`, `loss` and `accuracy` (a fraction).
    """
    measured = Measured(features, logit_scale)
    values = {name: measured.value(name) for name in names}
    if not curve or measured.value("gap_drop") is None:
        return values, None
    points = {name: getattr(measured.curve, name).tolist() for name in ("shifts", "distance", "loss", "accuracy")}
    return values, points
