"""Visual discriminability: how well the classes are told apart by the images alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .feature_metric import FeatureMetric
from .rows import check_labels, unit_rows

_TIE = 1e-12  # cosines that differ by rounding errors are equal


def scatter_ratio(features: Tensor, labels: Tensor) -> Tensor:
    """Compute the scatter between the classes divided by the scatter within them.

    The sum over the classes c of n_c |m_c - m|^2, divided by the sum over the rows i of |f_i - m_{y_i}|^2, with
    normalized features f, the means m_c of the classes and m of all rows. These are the traces of the between-class and
    the within-class scatter matrix of Fisher's discriminant analysis.

    Args:
        features: [N, D].
        labels: [N], any integers.

    Returns:
        A scalar, higher where the classes are better separated. NaN for a single class, and where no class has two
        images, since nothing is known of the scatter within then.
    """
    rows, classes, counts, sums = _by_class(features, labels)
    if len(counts) < 2 or len(counts) == len(rows):
        return rows.new_tensor(torch.nan)
    means = sums / counts[:, None]
    between = (counts * (means - rows.mean(dim=0)).square().sum(dim=1)).sum()
    return between / (rows - means[classes]).square().sum()


def nearest_prototype_accuracy(features: Tensor, labels: Tensor) -> Tensor:
    """Compute the fraction of the images whose class has the nearest prototype, leaving each image out of its own.

    A prototype is the mean of a class's normalized features, and near is a high cosine with it. An image that is
    equally near to k prototypes, one of them its own, counts 1/k: collapsed features give chance.

    Args:
        features: [N, D].
        labels: [N], any integers.

    Returns:
        A scalar from 0 to 1. Images that are alone in their class have no prototype of their own; they are left out,
        and their class remains a candidate for the others. NaN if all images are left out, and for a single class.
    """
    rows, classes, counts, sums = _by_class(features, labels)
    if len(counts) < 2 or len(counts) == len(rows):
        return rows.new_tensor(torch.nan)
    cosines = rows @ unit_rows(sums).T
    kept = (counts[classes] > 1).nonzero().flatten()
    without = unit_rows((sums[classes] - rows)[kept])
    own = (rows[kept] * without).sum(dim=1)
    cosines = cosines[kept].scatter(1, classes[kept, None], own[:, None])
    near = (cosines >= cosines.max(dim=1, keepdim=True).values - _TIE).to(cosines)
    shares = near.gather(1, classes[kept, None])[:, 0] / near.sum(dim=1)
    return shares.masked_fill(cosines.isnan().any(dim=1), torch.nan).mean()


def _by_class(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit rows [N, D], their classes 0..C-1, and of each class the number of rows and their sum [C, D]."""
    rows = unit_rows(features, "features")
    labels = check_labels(labels, len(rows)).to(rows.device)
    _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add(0, classes, rows)
    return rows, classes, counts.to(rows), sums


class ScatterRatio(FeatureMetric):
    """Measures `scatter_ratio` of all images."""

    higher_is_better = True
    plot_lower_bound = 0.0

    def compute(self) -> Tensor:
        """Return the scatter ratio, a scalar."""
        return scatter_ratio(*self._collected())


class NearestPrototypeAccuracy(FeatureMetric):
    """Measures `nearest_prototype_accuracy` of all images."""

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """Return the accuracy, a scalar."""
        return nearest_prototype_accuracy(*self._collected())
