"""Tensors from files, losses and scores must be finite numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import DtrapError


class DivergedError(DtrapError):
    """A training has left the finite numbers: its result is no result.

    Attributes:
        reason: What is not finite, and from which step on.
        remedy: What to change, without a period at the end.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}.")
        self.reason, self.remedy = reason, remedy


def check_finite(tensors: Mapping[str, Tensor], source: str, remedy: str) -> None:
    """Raise a DtrapError if a floating-point tensor has NaN or infinite values.

    Args:
        tensors: Tensors by name, such as a state dict.
        source: Where they come from, such as the file's path.
        remedy: A sentence that says what the user can do.

    Raises:
        DtrapError: Names the source, the first such tensor and its number of values that are not finite.
    """
    found = first_not_finite(tensors)
    if found is not None:
        tensor = tensors[found]
        count = int((~torch.isfinite(tensor)).sum())
        raise DtrapError(f"{source}: {count} of {tensor.numel()} values of '{found}' are NaN or infinite. {remedy}")


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first floating-point tensor with NaN or infinite values."""
    for name, tensor in tensors.items():
        # A sum is several times faster; one that is finite has finite terms, but finite terms may overflow.
        if tensor.is_floating_point() and not (tensor.sum().isfinite() or torch.isfinite(tensor).all()):
            return name
    return None


def finite_rows(scores: Tensor) -> Tensor:
    """Return which rows [B] of scores [B, W] are finite in every class."""
    return scores.detach().isfinite().all(dim=-1)


def predicted_classes(scores: Tensor) -> Tensor:
    """Return the class [B] with the highest score [B, W]; -1 for a row that is not finite, which has no class."""
    return torch.where(finite_rows(scores), scores.argmax(dim=-1), -1)
