"""Every tuner with small settings, by a name for a test."""

from dtrap.lightning_modules.tuners import (
    FWT,
    LDC,
    CLIPAdapter,
    CoOp,
    FullFineTuning,
    LinearHead,
    LoRA,
    LPPlusPlus,
    MaPLe,
    StepSPT,
    TipAdapter,
    TipAdapterF,
)

TUNERS = {
    "LoRA, vision": lambda: LoRA(rank=2),
    "LoRA, text": lambda: LoRA("text", rank=2),
    "LoRA, both": lambda: LoRA("both", rank=2),
    "CoOp": lambda: CoOp(context_tokens=4),
    "MaPLe": lambda: MaPLe(),
    "CLIP-Adapter": lambda: CLIPAdapter(),
    "Tip-Adapter": lambda: TipAdapter(),
    "Tip-Adapter-F": lambda: TipAdapterF(),
    "LP++": lambda: LPPlusPlus(alpha_every=2),
    "LDC": lambda: LDC(),
    "linear head": lambda: LinearHead(),
    "full, vision": lambda: FullFineTuning(),
    "full, text": lambda: FullFineTuning("text"),
    "StepSPT": lambda: StepSPT(),
    "FWT around LoRA": lambda: FWT(LoRA(rank=2)),
}
