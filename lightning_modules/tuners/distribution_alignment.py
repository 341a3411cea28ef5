"""StepSPT's distribution alignment: predictions agree with those of confident neighbors and spread over the classes.

Pure functions on features and probabilities, in float32 or better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import cosines

_LOG_OFFSET = 1e-5
_SMALLEST = torch.finfo(torch.float64).eps


def confident_rows(probabilities: Tensor) -> Tensor:
    """Which of the rows [n, W] are confident: bool [n], False for the floor(n/2) of the largest entropy."""
    entropy = -(probabilities * (probabilities + _LOG_OFFSET).log()).sum(dim=1)
    confident = torch.ones_like(entropy, dtype=torch.bool)
    confident[entropy.topk(len(entropy) // 2).indices] = False
    return confident


def find_partners(features: Tensor, bank: Tensor, confident: Tensor) -> Tensor:
    """The partner of every row: the first confident row on a walk through the bank.

    The walk starts at the bank row nearest to the feature, whose own confidence does not count, and goes on to the row
    nearest to where it is that was not visited yet. Nearness is the cosine. The authors' code gives up after 70 rounds,
    which more than 136 rows can need; here the walk goes on.

    Args:
        features: [n, D].
        bank: [n, D], the features of the same rows before the internal steps.
        confident: bool [n], of the bank's rows.

    Returns:
        Numbers [n] of bank rows; the last one of the walk where no other row is confident.
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
    """Minus the mutual information of the predictions and those of their partners, both [n, W]: a scalar.

    It is that of the joint distribution P [W, W] of the pairs, made symmetric (Ji et al. 2019, invariant information).
    """
    with torch.autocast(probabilities.device.type, enabled=False):
        joint = probabilities.T @ partner_probabilities
    joint = joint + joint.T
    joint = joint / joint.sum()
    marginal = joint.sum(dim=1).clamp(min=_SMALLEST).log()
    joint = joint.clamp(min=_SMALLEST)
    return -(joint * (joint.log() - marginal[:, None] - marginal[None, :])).sum()


def diversity_loss(probabilities: Tensor) -> Tensor:
    """Minus the entropy of the mean prediction of rows [n, W]: a scalar, least where all classes are as frequent."""
    mean = probabilities.mean(dim=0)
    return (mean * (mean + _LOG_OFFSET).log()).sum()


def label_propagation(logits: Tensor, neighbors: int = 2, kept: float = 0.2, alpha: float = 0.5) -> Tensor:
    """Scores of all queries of one view after label propagation between near logits ("SPT+LP+DA").

    A prediction over several views is the largest sum of the views' scores.

    Args:
        logits: [Q, W] of all queries of the view.
        neighbors: How many nearest rows, itself among them, a query is joined to.
        kept: Share of the queries whose probabilities are spread, for every class those of the largest ones.
        alpha: How far they are spread.

    Returns:
        [Q, W]; rows do not add up to 1.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = len(logits)
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
