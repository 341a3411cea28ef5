"""The gap shift: what happens to loss and accuracy when images and texts are moved along the gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import expected_one_of
from .feature_metric import FeatureMetric
from .gaps import gap_direction
from .rows import text_labels, unit_rows, unit_rows_of_both

Sides = Literal["both", "image"]
# The shifts of dtrap's own curves. Both ends lie beyond the gap of CLIP's own features, about 0.85.
SHIFTS = tuple(step / 20 for step in range(-20, 21))
_ENTRIES = 2**22  # of all cosines that are held at once, 32 MiB


class GapShiftCurve(NamedTuple):
    """Loss and accuracy over the shifts; tensors [S], a value for each shift.

    Attributes:
        shifts: d, as given.
        distance: Distance of the means after the shift; negative where the images have passed the texts.
        loss: Cross-entropy of the images against the texts.
        accuracy: Fraction of the images whose own text is the nearest; of equally near texts the first counts.
        unshifted_loss: The loss at d = 0, a scalar, whether 0 is among the shifts or not.
    """

    shifts: Tensor
    distance: Tensor
    loss: Tensor
    accuracy: Tensor
    unshifted_loss: Tensor

    @property
    def least_loss(self) -> Tensor:
        """The least loss of the curve; NaN if a loss is NaN."""
        return self.loss.min()

    @property
    def drop(self) -> Tensor:
        """loss(0) - least loss: what the best shift gains; not negative if 0 is among the shifts."""
        return self.unshifted_loss - self.least_loss

    @property
    def least_shift(self) -> Tensor:
        """The d of least loss; of equal losses the one nearest to 0, NaN if a loss is NaN."""
        if self.loss.isnan().any():
            return self.loss.new_tensor(torch.nan)
        candidates = self.shifts[self.loss == self.least_loss]
        return candidates[candidates.abs().argmin()]


def gap_shift_curve(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    shifts: Sequence[float] | Tensor,
    *,
    sides: Sides = "both",
    direction: Tensor | None = None,
    logit_scale: float = 100.0,
) -> GapShiftCurve:
    """Move images and texts along the gap, and compute distance, loss and accuracy at each shift.

    With normalized rows and the unit gap vector g = (mean f - mean t) / |mean f - mean t|, a shift d on both sides is
    f' = norm(f - d/2 g), t' = norm(t + d/2 g); on the side of the images it is f' = norm(f - d g), t' = t. The distance
    is |mean f' - mean t'| with the sign of the product of g and (mean f' - mean t').

    Source: Liang et al. 2022, "Mind the Gap", arXiv 2203.02053, section 5, and the authors' notebooks.

    Args:
        image_features: [N, D].
        text_features: [W, D].
        labels: [N]; `labels[i]` is the row of the text of image i.
        shifts: d, any numbers.
        sides: What is moved: "both", or the "image" features alone.
        direction: g [D], such as `gap_direction` of a whole set of which this is a part; scaled to length 1. That of
            the features given if None.
        logit_scale: Factor on the cosines.

    Returns:
        The curve, with `least_loss`, `drop` (loss(0) - least loss) and `least_shift`. All NaN if a row is zero or not
        finite; all but `unshifted_loss` if both means are equal, so that the gap has no direction.
    """
    images, texts = unit_rows_of_both(image_features, text_features)
    labels = text_labels(labels, images, texts)
    steps = _checked_shifts(shifts).to(images)
    if sides not in get_args(Sides):
        raise ValueError(f"sides is {sides!r}; {expected_one_of(sides, get_args(Sides))}")
    image_shifts, text_shifts = (-steps / 2, steps / 2) if sides == "both" else (-steps, torch.zeros_like(steps))
    gap = _unit_direction(direction, images, texts)
    at_once = max(1, _ENTRIES // (len(images) * len(texts)))
    parts = [
        _measured(images, texts, labels, gap, *part, logit_scale)
        for part in zip(image_shifts.split(at_once), text_shifts.split(at_once), strict=True)
    ]
    distance, loss, accuracy = torch.cat(parts, dim=1)
    return GapShiftCurve(steps, distance, loss, accuracy, F.cross_entropy(logit_scale * images @ texts.T, labels))


def _measured(
    images: Tensor,
    texts: Tensor,
    labels: Tensor,
    gap: Tensor,
    image_shifts: Tensor,
    text_shifts: Tensor,
    logit_scale: float,
) -> Tensor:
    """Distance, loss and accuracy [3, S] after the shifts f + a g of the images and t + b g of the texts.

    (f + a g) (t + b g) = f t + b f g + a t g + a b: with the products of the rows, all shifts are measured at once.
    """
    image_lengths, image_means = _lengths_and_means(images, gap, image_shifts)
    text_lengths, text_means = _lengths_and_means(texts, gap, text_shifts)
    a, b = image_shifts[:, None, None], text_shifts[:, None, None]
    products = images @ texts.T + b * (images @ gap)[:, None] + a * (texts @ gap) + a * b
    cosines = products / (image_lengths[:, :, None] * text_lengths[:, None, :])
    repeated = labels.expand(len(cosines), -1)
    losses = F.cross_entropy(logit_scale * cosines.flatten(0, 1), repeated.flatten(), reduction="none")
    hits = (cosines.argmax(dim=2) == repeated).to(cosines)
    known = hits.masked_fill(cosines.isnan().any(dim=2), torch.nan)  # argmax takes NaN for the nearest text
    apart = image_means - text_means
    distance = apart.norm(dim=1) * (apart @ gap).sign()
    return torch.stack([distance, losses.view_as(hits).mean(dim=1), known.mean(dim=1)])


def _lengths_and_means(rows: Tensor, gap: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths [S, rows] of `rows + shift * gap`, and the means [S, D] of these rows divided by their lengths."""
    lengths = (1 + 2 * shifts[:, None] * (rows @ gap) + shifts[:, None].square()).sqrt()
    weights = 1 / lengths / len(rows)
    return lengths, weights @ rows + (shifts * weights.sum(dim=1))[:, None] * gap


def _checked_shifts(shifts: Sequence[float] | Tensor) -> Tensor:
    """The shifts as a tensor [S] of finite numbers."""
    steps = torch.as_tensor(shifts, dtype=torch.float64)
    if steps.dim() != 1 or not len(steps) or not bool(steps.isfinite().all()):
        raise ValueError(f"shifts is {shifts!r}; expected a list of at least one finite number.")
    return steps


def _unit_direction(direction: Tensor | None, images: Tensor, texts: Tensor) -> Tensor:
    """The direction [D] of length 1, that of the features if None."""
    if direction is None:
        return gap_direction(images, texts)
    direction = torch.as_tensor(direction)
    if direction.shape != images.shape[1:]:
        raise ValueError(f"direction has the shape {list(direction.shape)}; expected [{images.shape[1]}].")
    return unit_rows(direction[None].to(images), "direction")[0]


class GapShift(FeatureMetric):
    """Measures `gap_shift_curve` between all images and the texts of `set_texts`.

    Args:
        shifts: d; from -1 to 1 in steps of 0.05 if None.
        sides: What is moved: "both", or the "image" features alone.
        direction: g [D]; that of all images and texts if None.
        logit_scale: Factor on the cosines.
        **kwargs: As for every torchmetrics `Metric`.
    """

    higher_is_better = False
    direction: Tensor | None

    def __init__(
        self,
        shifts: Sequence[float] | Tensor | None = None,
        *,
        sides: Sides = "both",
        direction: Tensor | None = None,
        logit_scale: float = 100.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.shifts = _checked_shifts([step / 20 for step in range(-20, 21)] if shifts is None else shifts).tolist()
        self.sides: Sides = sides
        self.logit_scale = logit_scale
        self.register_buffer("direction", direction, persistent=False)

    def compute(self) -> GapShiftCurve:
        """Return the curve; log its `drop`, `least_loss` and `least_shift`, which are scalars."""
        return gap_shift_curve(
            *self._collected_with_texts(),
            self.shifts,
            sides=self.sides,
            direction=self.direction,
            logit_scale=self.logit_scale,
        )

    def plot(self, val: GapShiftCurve | Sequence[GapShiftCurve] | None = None, ax: Any = None) -> Any:
        """Plot the loss over the distance of the means.

        Args:
            val: A curve, or several; `compute()` if None.
            ax: Matplotlib axes; new ones if None.

        Returns:
            The figure and the axes.
        """
        from matplotlib import pyplot

        val = self.compute() if val is None else val
        ax = pyplot.subplots()[1] if ax is None else ax
        for number, curve in enumerate([val] if isinstance(val, GapShiftCurve) else val):
            ax.plot(curve.distance.detach().cpu(), curve.loss.detach().cpu(), label=f"{number}")
        ax.set(xlabel="distance of the means", ylabel="cross-entropy", title=type(self).__name__)
        return ax.get_figure(), ax
