"""Log one row per episode to the Lightning loggers of the config, with what a comparison of runs needs."""

from .facts import run_facts
from .local_paths import without_local_paths
from .protocol_logger import ProtocolLogger
from .wandb_run import WANDB_ID_FILE, WANDB_SETTINGS

__all__ = ["WANDB_ID_FILE", "WANDB_SETTINGS", "ProtocolLogger", "run_facts", "without_local_paths"]
