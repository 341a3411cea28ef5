"""StepSPT's distribution alignment: predictions agree with confident neighbors and are spread over the classes.

Pure functions of features and probabilities, in at least float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import cosines

_LOG_OFFSET = 1e-5  # of the authors' code; without it the entropy of a probability of 0 is nan
_SMALLEST = torch.finfo(torch.float64).eps


def confident_rows(probabilities: Tensor) -> Tensor:
    """Return which rows [n, W] are confident: bool [n], False for the floor(n/2) rows with the largest entropy."""
    entropy = -(probabilities * (probabilities + _LOG_OFFSET).log()).sum(dim=1)
    confident = torch.ones_like(entropy, dtype=torch.bool)
    confident[entropy.topk(len(entropy) // 2).indices] = False
    return confident


def find_partners(features: Tensor, bank: Tensor, confident: Tensor) -> Tensor:
    """Return the partner of every row: the first confident row on a walk through the bank.

    The walk starts at the bank row nearest to the feature, regardless of its confidence. Each step goes to the nearest
    row that was not visited yet, by the cosine. The authors' code stops after 70 steps, which can be too few for more
    than 136 rows; this function continues.

    Args:
        features: [n, D].
        bank: [n, D], the features of the same rows before the internal steps.
        confident: bool [n], for the bank's rows.

    Returns:
        Indices [n] of bank rows; the last one of the walk if no other row is confident.
    """
    similarity = cosines(bank, bank)
    walks = torch.arange(len(features), device=bank.device)
    place = cosines(features, bank).argmax(dim=1)
    visited = torch.zeros(len(features), len(bank), dtype=torch.bool, device=bank.device)
    arrived = torch.zeros_like(walks, dtype=torch.bool)
    for _ in range(len(bank) - 1):
        visited[walks, place] = True
        following = similarity[place].masked_fill(visited, -torch.inf).argmax(dim=1)
        place = torch.where(arrived, place, following)
        arrived |= confident[place]
        if arrived.all():
            break
    return place


def information_loss(probabilities: Tensor, partner_probabilities: Tensor) -> Tensor:
    """Return minus the mutual information of the predictions [n, W] and their partners' [n, W], a scalar.

    It is computed from the symmetrized joint distribution P [W, W] of the pairs (Ji et al. 2019, invariant
    information).
    """
    with torch.autocast(probabilities.device.type, enabled=False):
        joint = probabilities.T @ partner_probabilities
    joint = joint + joint.T
    joint = joint / joint.sum()
    marginal = joint.sum(dim=1).clamp(min=_SMALLEST).log()
    joint = joint.clamp(min=_SMALLEST)
    return -(joint * (joint.log() - marginal[:, None] - marginal[None, :])).sum()


def diversity_loss(probabilities: Tensor) -> Tensor:
    """Return minus the entropy of the mean prediction of rows [n, W], a scalar; smallest if classes are balanced."""
    mean = probabilities.mean(dim=0)
    return (mean * (mean + _LOG_OFFSET).log()).sum()


def label_propagation(logits: Tensor, neighbors: int = 2, kept: float = 0.2, alpha: float = 0.5) -> Tensor:
    """Return the scores of all queries of one view after label propagation between similar logits ("SPT+LP+DA").

    A prediction from several views is the class with the largest sum of the views' scores.

    Args:
        logits: [Q, W] of all queries of the view.
        neighbors: Number of nearest rows that a query is connected to, including itself.
        kept: Share of the queries whose probabilities are propagated; for every class those with the largest ones.
        alpha: Strength of the propagation.

    Returns:
        [Q, W]; rows do not add up to 1.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = len(logits)
    # The form with a matrix product cancels for near rows, and the kernel needs exactly these distances.
    distances = torch.cdist(logits, logits, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = distances.topk(min(neighbors, total), largest=False)
    weights = torch.zeros_like(distances).scatter(1, nearest.indices, _kernel(nearest.values))
    weights = torch.maximum(weights, weights.T)
    scale = weights.sum(dim=1).rsqrt()
    spread = scale[:, None] * weights * scale[None, :]
    start = logits.softmax(dim=1)
    dropped = start.topk(int((1 - kept) * total), dim=0, largest=False).indices
    start = start.scatter(0, dropped, 0.0)
    identity = torch.eye(total, dtype=spread.dtype, device=spread.device)
    return torch.linalg.solve(identity - alpha * spread, start)


def _kernel(squared_distances: Tensor) -> Tensor:
    variance = squared_distances.mean().clamp(min=torch.finfo(squared_distances.dtype).tiny)
    return (-squared_distances / (2 * variance)).exp()
