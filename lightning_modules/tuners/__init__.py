"""Ways of adapting a frozen backbone, one file each."""

from .base import Tuner
from .lora import LoRA

__all__ = ["LoRA", "Tuner"]
