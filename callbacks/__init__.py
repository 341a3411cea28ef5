"""Callbacks for the Trainer, one file each."""

from .keep_best import KeepBest
from .stage_switch import StageSwitch

__all__ = ["KeepBest", "StageSwitch"]
