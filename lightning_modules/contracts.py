"""Checks of what backbones and tuners of other projects return; each error states the contract."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import DtrapError
from .backbones.base import Backbone

_NUMBERS = ("image_size", "context_length", "feature_dim")
_CHANNELS = ("image_mean", "image_std")


def check_backbone(backbone: Any) -> None:
    """Check a backbone's type and attributes; their meaning is documented in `Backbone`.

    Raises:
        DtrapError: It is not a `Backbone`, or an attribute is missing or of another type.
    """
    name = type(backbone).__name__
    if not isinstance(backbone, Backbone):
        raise DtrapError(f"backbone is a {name}; expected a subclass of dtrap.lightning_modules.backbones.Backbone.")
    wrong = [key for key in Backbone.__annotations__ if not hasattr(backbone, key)]
    wrong = wrong or [key for key in _NUMBERS if not (isinstance(getattr(backbone, key), int))]
    wrong = wrong or [key for key in _CHANNELS if len(getattr(backbone, key)) != 3]
    wrong = wrong or [key for key in _CHANNELS if not all(map(math.isfinite, getattr(backbone, key)))]
    if wrong:
        raise DtrapError(
            f"{name}: the attribute `{wrong[0]}` is {getattr(backbone, wrong[0], 'missing')}. A Backbone sets in its "
            "__init__: identifier (text), image_size, context_length and feature_dim (whole numbers), image_mean and "
            "image_std (three finite numbers each), logit_bias (a number or None)."
        )


def check_tokens(backbone: Any, tokens: Any, prompts: int) -> None:
    """Check what a backbone's `tokenize` returned for a number of prompts.

    Raises:
        DtrapError: It is not an int64 tensor [P, context_length].
    """
    expected = (prompts, backbone.context_length)
    if not isinstance(tokens, Tensor) or tokens.shape != expected or tokens.dtype != torch.int64:
        raise DtrapError(
            f"{type(backbone).__name__}.tokenize returned {shown_type(tokens)} for {prompts} prompts; expected an "
            f"int64 tensor {list(expected)}: prompts, context_length."
        )


def check_rows(source: str, value: Any, rows: int, of: str, width: int | None = None, *, finite: bool = False) -> None:
    """Check features or logits that a backbone or a tuner returned.

    Args:
        source: The method, such as "LoRA.image_features".
        value: What it returned.
        rows: The expected number of rows.
        of: What each row belongs to, such as "images".
        width: The expected number of columns; None for any.
        finite: Check the values too, which waits for the device.

    Raises:
        DtrapError: It is not a floating-point tensor of this shape, or values are not finite.
    """
    columns = "any width" if width is None else str(width)
    sound = isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 2 and len(value) == rows
    if not sound or width not in (None, value.shape[1]):
        raise DtrapError(
            f"{source} returned {shown_type(value)} for {rows} {of}; expected a floating-point tensor "
            f"[{rows}, {columns}], one row each."
        )
    if finite and not bool(value.detach().isfinite().all()):
        raise DtrapError(
            f"{source} returned values that are not finite. Check the weights, the input and the precision."
        )


def check_loss(source: str, value: Any) -> None:
    """Check that a loss is a scalar tensor; raises a DtrapError otherwise."""
    if not isinstance(value, Tensor) or value.dim() != 0 or not value.is_floating_point():
        raise DtrapError(
            f"{source} returned {shown_type(value)}; expected a scalar floating-point tensor, the mean loss."
        )


def shown_type(value: Any) -> str:
    """Return what a value is, such as "a float32 tensor [2, 3]" or "a list"."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    return f"a {type(value).__name__}"
