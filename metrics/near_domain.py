"""A guess whether a domain is so near to the model's own that suppressing visual learning may hurt."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from .gap_shift import SHIFTS, gap_shift_curve

# Fixed on seeds 1 to 3 of the demo's domains, 1 and 5 shots, 30 episodes each, before anything was trained: at least
# two of the three hold for 98 % of the episodes of the domain that the tiny CLIP was trained on, and for 2 % of those
# of the three other domains.
LEAST_ACCURACY = 0.8
MOST_ENTROPY = 0.1
MOST_GAP_DROP = 0.2


@dataclass(frozen=True)
class NearDomain:
    """What the untuned model makes of the support images.

    Attributes:
        accuracy: Share of the support images whose class the untuned model finds.
        entropy: Mean entropy of its class probabilities, divided by log W: 0 is certain, 1 undecided.
        gap_drop: loss(0) - least loss of the two-sided gap shift.
    """

    accuracy: float
    entropy: float
    gap_drop: float

    @property
    def near(self) -> bool:
        """Whether at least two of the three numbers look as in a near domain."""
        held = (self.accuracy >= LEAST_ACCURACY, self.entropy <= MOST_ENTROPY, self.gap_drop <= MOST_GAP_DROP)
        return sum(held) >= 2


def near_domain(
    image_features: Tensor, text_features: Tensor, labels: Tensor, *, logit_scale: float = 100.0
) -> NearDomain:
    """Measure on the support images, before the tuning, how well a model knows a domain already.

    The paper leaves open whether suppression hurts in a near domain. The thresholds are ours (see the module's source)
    and come from drawn images and a tiny model: take a warning as a reason to compare with plain fine-tuning, not as a
    result.

    Args:
        image_features: Features of the plain support images without the tuner [M, D].
        text_features: Class text features [W, D], at least two classes.
        labels: Classes [M].
        logit_scale: tau.

    Returns:
        The three numbers; their property `near` is the guess.
    """
    images, texts = (F.normalize(each.detach().float(), dim=-1) for each in (image_features, text_features))
    probabilities = (logit_scale * images @ texts.T).softmax(dim=-1)
    entropy = torch.special.entr(probabilities).sum(dim=-1).mean() / log(len(texts))
    # Rounded up a little: 0.8 in single precision is less than 0.8.
    accuracy = round(float((probabilities.argmax(dim=-1) == labels).double().mean()), 9)
    curve = gap_shift_curve(images, texts, labels, SHIFTS, logit_scale=logit_scale)
    return NearDomain(accuracy, float(entropy), float(curve.drop))
