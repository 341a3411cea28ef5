"""Ways of adapting a frozen backbone, one file each."""

from .base import TaskData, Tuner
from .lora import LoRA

__all__ = ["LoRA", "TaskData", "Tuner"]
