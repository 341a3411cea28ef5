"""Log one row per episode to the Lightning loggers of the config, with what a comparison of runs needs."""

from .local_paths import without_local_paths
from .protocol_logger import ProtocolLogger
from .run_logger import run_logger
from .wandb_run import WANDB_ID_FILE, WANDB_SETTINGS, in_sweep

__all__ = ["WANDB_ID_FILE", "WANDB_SETTINGS", "ProtocolLogger", "in_sweep", "run_logger", "without_local_paths"]
