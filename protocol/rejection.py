"""Thresholds that reject images of none of the classes, from the similarities of a run's own images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..errors import DtrapError, check_one_of, expected_one_of

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
Similarity = Literal["tuned", "zero_shot"]
KINDS = ("tuned", "zero_shot")
DEFAULT_KIND: Similarity = "tuned"
_DECIMALS = 1e6


class Threshold(NamedTuple):
    """A similarity below which an image is rejected.

    Attributes:
        kind: "tuned" for the similarity of the tuned model, "zero_shot" for that of the backbone without the tuner.
        value: The similarity.
        rate: The share of own images that was asked for.
        expected: The share of new images of the known classes that is expected below it, if the images that it comes
            from are like new ones.
        images: Number of images that it comes from.
        source: "held-out" or "training".
    """

    kind: str
    value: float
    rate: float
    expected: float
    images: int
    source: str

    def __str__(self) -> str:
        below = f"below {self.kind.replace('_', '-')} similarity {self.value:.4f}"
        text = f"{below}, expected for {100 * self.expected:.1f} % of the classes' own images"
        few = f" (more than {100 * self.rate:g} %: there are too few)" if self.expected > self.rate + 1e-9 else ""
        text += f", from {self.images:,} {self.source} images{few}"
        if self.source == "training" and self.kind == "tuned":
            text += "; these were trained on, so that more of new ones will be rejected"
        return text


def similarities(scores: Tensor, logit_scale: float) -> Tensor:
    """Return how similar each image is to its nearest class: a cosine where the scores are scaled cosines.

    Args:
        scores: Logits [N, W].
        logit_scale: tau.
    """
    return scores.double().amax(dim=1) / logit_scale


def rank_of(rate: float, images: int) -> int:
    """Return the rank k of the threshold: an image like the others is below the k-th lowest in k of N + 1 cases."""
    return min(images, max(1, math.floor(rate * (images + 1) + 1e-9)))


def thresholds_of(own: Tensor) -> list[float]:
    """Return the threshold of each rate in `RATES`.

    Args:
        own: Similarities [N] of images of the classes.
    """
    ranked = own.double().sort().values
    # Rounded down, so that the image itself is not rejected because of a last bit.
    return [math.floor(float(ranked[rank_of(rate, len(own)) - 1]) * _DECIMALS) / _DECIMALS for rate in RATES]


def describe_thresholds(own: Mapping[str, Tensor], source: str) -> dict[str, Any] | None:
    """Return the thresholds for an adapter's card; None without images.

    Args:
        own: Similarities of the same images by kind.
        source: "held-out" or "training".
    """
    known = {kind: values for kind, values in own.items() if len(values) and bool(values.isfinite().all())}
    if not known:
        return None
    images = min(map(len, known.values()))
    found: dict[str, Any] = {kind: thresholds_of(values) for kind, values in known.items()}
    return {"source": source, "images": images, "rates": list(RATES), **found}


def threshold_of(card: Mapping[str, Any] | None, rate: float, kind: str, name: object) -> Threshold:
    """Return a threshold of a card.

    Args:
        card: The card's `rejection`.
        rate: Share of own images that is rejected, one of the card's rates.
        kind: One of `KINDS`.
        name: The adapter, for messages.

    Raises:
        DtrapError: The card has no such threshold.
    """
    check_one_of("reject_by", kind, KINDS)
    if card is None:
        raise DtrapError(
            f"{name}: its card has no thresholds for --reject: it is of an earlier version, or was saved without "
            "images to choose them from. Train it again with --protocol.save_adapters true."
        )
    try:
        rates, images, source = [float(each) for each in card["rates"]], int(card["images"]), str(card["source"])
        values = None if kind not in card else [float(value) for value in card[kind]]
        if (
            images < 1
            or len(rates if values is None else values) != len(rates)
            or not all(map(math.isfinite, [*rates, *(values or [])]))
        ):
            raise ValueError("numbers that do not belong together")
    except (KeyError, TypeError, ValueError) as error:
        raise DtrapError(f"{name}: the card's thresholds are not as dtrap writes them ({error}).") from error
    if values is None:
        other = next((each for each in KINDS if each in card), None)
        remedy = f"Use --reject_by {other}." if other else "Train the adapter again."
        raise DtrapError(f"{name}: its card has no thresholds of the {kind.replace('_', '-')} similarity. {remedy}")
    if rate not in rates:
        raise DtrapError(f"reject is {rate}; {expected_one_of(rate, [f'{each:g}' for each in rates])}")
    expected = rank_of(rate, images) / (images + 1)
    return Threshold(kind, values[rates.index(rate)], rate, expected, images, source)
