"""Checks of tuners of other projects; each error states the contract."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from ...errors import DtrapError
from ..backbones.base import Tower
from ..contracts import shown_type
from .base import Tuner


def check_tuner(tuner: Any) -> None:
    """Check the attributes of a tuner before it is attached.

    Raises:
        DtrapError: It is not a `Tuner`, or its `name` or `trains` is missing or of another type.
    """
    class_name = type(tuner).__name__
    if not isinstance(tuner, Tuner):
        raise DtrapError(f"tuner is a {class_name}; expected a subclass of dtrap.lightning_modules.tuners.Tuner.")
    if not isinstance(getattr(tuner, "name", None), str):
        raise DtrapError(f"{class_name}: the attribute `name` is missing. Expected a short text for file names.")
    towers = tuner.trains
    if not isinstance(towers, (set, frozenset)) or not towers <= set(get_args(Tower)):
        raise DtrapError(
            f"{class_name}: `trains` is {towers!r}; expected a frozenset of the towers whose features change with "
            f"training, out of {', '.join(map(repr, get_args(Tower)))}; empty if both stay frozen."
        )


def check_state(tuner: Any) -> None:
    """Check the state of an attached tuner.

    Raises:
        DtrapError: `adapter_state` is not a dictionary of tensors by name.
    """
    state = tuner.adapter_state()
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DtrapError(
            f"{type(tuner).__name__}.adapter_state returned {shown_type(state)}; expected a dictionary of all tensors "
            "to save by name, those to train as nn.Parameter."
        )
