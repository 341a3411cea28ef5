"""Methods that adapt a frozen backbone, one file each."""

from typing import TYPE_CHECKING

from ...lazy import lazy

if TYPE_CHECKING:
    from .base import TaskData as TaskData
    from .base import Tuner as Tuner
    from .clip_adapter import CLIPAdapter as CLIPAdapter
    from .coop import CoOp as CoOp
    from .full import FullFineTuning as FullFineTuning
    from .fwt import FWT as FWT
    from .ldc import LDC as LDC
    from .linear_head import LinearHead as LinearHead
    from .lora import LoRA as LoRA
    from .lpp import LPPlusPlus as LPPlusPlus
    from .maple import MaPLe as MaPLe
    from .stepspt import StepSPT as StepSPT
    from .tip_adapter import TipAdapter as TipAdapter
    from .tip_adapter import TipAdapterF as TipAdapterF
else:
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            "base": ["TaskData", "Tuner"],
            "clip_adapter": ["CLIPAdapter"],
            "coop": ["CoOp"],
            "full": ["FullFineTuning"],
            "fwt": ["FWT"],
            "ldc": ["LDC"],
            "linear_head": ["LinearHead"],
            "lora": ["LoRA"],
            "lpp": ["LPPlusPlus"],
            "maple": ["MaPLe"],
            "stepspt": ["StepSPT"],
            "tip_adapter": ["TipAdapter", "TipAdapterF"],
        },
    )
