"""Ways of adapting a frozen backbone, one file each."""

from .base import TaskData, Tuner
from .clip_adapter import CLIPAdapter
from .coop import CoOp
from .full import FullFineTuning
from .fwt import FWT
from .ldc import LDC
from .linear_head import LinearHead
from .lora import LoRA
from .lpp import LPPlusPlus
from .maple import MaPLe
from .stepspt import StepSPT
from .tip_adapter import TipAdapter, TipAdapterF

__all__ = [
    "FWT",
    "LDC",
    "CLIPAdapter",
    "CoOp",
    "FullFineTuning",
    "LPPlusPlus",
    "LinearHead",
    "LoRA",
    "MaPLe",
    "StepSPT",
    "TaskData",
    "TipAdapter",
    "TipAdapterF",
    "Tuner",
]
