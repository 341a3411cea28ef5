"""Whether images are as similar to each other as the texts of their classes."""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import expected_one_of
from .feature_metric import FeatureMetric
from .rows import text_labels, unit_rows_of_both

Form = Literal["softmax", "cosine"]
_DECIMALS = 12  # beyond these, cosines that are equal differ by rounding errors, which would be ranked


class RelationAgreementResult(NamedTuple):
    """Agreement of visual and text relations.

    Attributes:
        rank_correlation: Spearman's, from -1 to 1; higher is more agreement.
        divergence: That of relation alignment (RA); less is more agreement.
    """

    rank_correlation: Tensor
    divergence: Tensor


def relation_agreement(
    image_features: Tensor, text_features: Tensor, labels: Tensor, *, form: Form = "softmax"
) -> RelationAgreementResult:
    """Compare the cosines of all images with those of the texts of their classes.

    The visual relations A^v [N, N] are the cosines of all images with each other, the text relations A^t [N, N] those
    of their texts. The rank correlation is Spearman's over the pairs i < j, with average ranks for ties; pairs of the
    same class are among them. The divergence is the loss of relation alignment where A^fuse = A^t. In the form
    "softmax" it is KL(A^v || A^t) of the row-wise softmax, summed over columns and averaged over rows, as the paper
    writes it; in the form "cosine" the mean of exp(A^t) * (A^t - A^v), as in its authors' code, which may be negative.

    Source: arXiv 2603.13341 for the relations and the divergence.

    Args:
        image_features: [N, D].
        text_features: [W, D].
        labels: [N], the row of each image's text.
        form: Of the divergence.

    Returns:
        `rank_correlation` and `divergence`. The rank correlation is NaN where one of both relations is constant, such
        as for two images or a single class. It has no gradient.
    """
    if form not in get_args(Form):
        raise ValueError(f"form is {form!r}; {expected_one_of(form, get_args(Form))}")
    images, texts = unit_rows_of_both(image_features, text_features)
    labels = text_labels(labels, images, texts)
    visual = images @ images.T
    text = (texts @ texts.T)[labels[:, None], labels[None, :]]
    if form == "cosine":
        divergence = (text.exp() * (text - visual)).mean()
    else:
        divergence = F.kl_div(text.log_softmax(1), visual.log_softmax(1), reduction="batchmean", log_target=True)
    return RelationAgreementResult(_rank_correlation(visual, text), divergence)


def _rank_correlation(visual: Tensor, text: Tensor) -> Tensor:
    """Spearman's rank correlation of the entries above the diagonal of [N, N]."""
    from scipy.stats import spearmanr

    upper = torch.ones_like(visual, dtype=torch.bool).triu(diagonal=1)
    first, second = (relation.detach()[upper].cpu().double().round(decimals=_DECIMALS) for relation in (visual, text))
    if len(first) < 2:
        return visual.new_tensor(torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant relations, whose correlation is NaN
        return visual.new_tensor(spearmanr(first.numpy(), second.numpy()).statistic)


class RelationAgreement(FeatureMetric):
    """Measures `relation_agreement` of all images and their texts.

    Args:
        form: Of the divergence, "softmax" or "cosine".
        **kwargs: As for every torchmetrics `Metric`.
    """

    higher_is_better = True  # the rank correlation; of the divergence less is better

    def __init__(self, form: Form = "softmax", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.form: Form = form

    def compute(self) -> RelationAgreementResult:
        """Return `rank_correlation` and `divergence`, which are scalars to log."""
        return relation_agreement(*self._collected_with_texts(), form=self.form)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one result or a list of results; see `torchmetrics.Metric.plot`."""
        val = self.compute() if val is None else val
        several = [val] if isinstance(val, RelationAgreementResult) else val
        as_dicts = [result._asdict() for result in several]
        return super().plot(as_dicts[0] if isinstance(val, RelationAgreementResult) else as_dicts, ax)
