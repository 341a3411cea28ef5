"""Tensors from files and computed scores must be finite numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import DtrapError


def check_finite(tensors: Mapping[str, Tensor], source: str, remedy: str) -> None:
    """Raise a DtrapError if a floating-point tensor has NaN or infinite values.

    Args:
        tensors: Tensors by name, such as a state dict.
        source: Where they come from, such as the file's path.
        remedy: A sentence that says what the user can do.

    Raises:
        DtrapError: Names the source, the first such tensor and its number of values that are not finite.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise DtrapError(f"{source}: {count} of {tensor.numel()} values of '{name}' are NaN or infinite. {remedy}")
