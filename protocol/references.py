"""Callbacks that need the row of another method of the same episode, such as StopAtLoss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..callbacks.stop_at_loss import WINDOW, StopAtLoss
from ..errors import DtrapError
from .run_folder import Row


def check_references(callbacks: Mapping[str, Sequence[Any]]) -> None:
    """Raise a DtrapError if a callback refers to a method that does not run before its own.

    Args:
        callbacks: The callbacks of each method, in the order in which the methods run. One with `use_row` and
            `reference` is given the rows of an episode that were written before.
    """
    names = list(callbacks)
    for position, name in enumerate(names):
        for callback in callbacks[name]:
            reference = getattr(callback, "reference", None)
            if not hasattr(callback, "use_row") or reference is None or reference in names[:position]:
                continue
            kind, before = type(callback).__name__, ", ".join(names[:position]) or "(none)"
            where = "does not run before it" if reference in names else "is not a method of this run"
            raise DtrapError(
                f"{kind} of the method '{name}': its reference '{reference}' {where}; before it run: {before}. Put "
                f"{kind} into an overlay of --protocol.compare, after that method's overlay, and give the main method "
                "a name with --protocol.method."
            )


def give_rows(callbacks: Iterable[Any], rows: Sequence[Row]) -> None:
    """Give the rows of this episode to the callbacks that use them."""
    for callback in callbacks:
        if hasattr(callback, "use_row"):
            callback.use_row(rows)


def loss_windows(trainers: Iterable[Mapping[str, Any]]) -> set[float]:
    """Return the shares of the steps over which a row's final loss is needed, given the Trainer's arguments."""
    given = (arguments.get("callbacks") for arguments in trainers)
    callbacks = [c for listed in given for c in (listed if isinstance(listed, list) else [listed])]
    return {WINDOW} | {callback.window for callback in callbacks if isinstance(callback, StopAtLoss)}
