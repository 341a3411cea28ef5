"""Callbacks for Lightning's Trainer, one file each."""

# Both need Lightning alone, so that nothing is gained by importing them later.
from .keep_best import KeepBest
from .stage_switch import StageSwitch

__all__ = ["KeepBest", "StageSwitch"]
