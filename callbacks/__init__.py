"""Callbacks for Lightning's Trainer, one file each."""

# They need Lightning alone, so that nothing is gained by importing them later.
from .cost_monitor import CostMonitor
from .keep_best import KeepBest
from .near_domain_warning import NearDomainWarning
from .stage_switch import StageSwitch

__all__ = ["CostMonitor", "KeepBest", "NearDomainWarning", "StageSwitch"]
