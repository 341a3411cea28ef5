"""Callbacks for Lightning's Trainer, one file each."""

# All need Lightning and torchmetrics alone, so that nothing is gained by importing them later.
from .alignment_monitor import AlignmentMonitor
from .cost_monitor import CostMonitor
from .keep_best import KeepBest
from .near_domain_warning import NearDomainWarning
from .stage_switch import StageSwitch
from .stop_at_loss import StopAtLoss

__all__ = ["AlignmentMonitor", "CostMonitor", "KeepBest", "NearDomainWarning", "StageSwitch", "StopAtLoss"]
