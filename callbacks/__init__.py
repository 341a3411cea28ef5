"""Callbacks for Lightning's Trainer, one file each."""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .keep_best import KeepBest as KeepBest
    from .stage_switch import StageSwitch as StageSwitch
else:
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            "keep_best": ["KeepBest"],
            "stage_switch": ["StageSwitch"],
        },
    )
