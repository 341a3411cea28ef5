"""Every tuner with small settings, by a name for a test."""

from dtrap.lightning_modules.tuners import (
    FWT,
    LDC,
    PEFT,
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


def peft(name, **arguments):
    return {"class_path": f"peft.{name}Config", "init_args": arguments}


TUNERS = {
    "LoRA, vision": lambda: LoRA(rank=2),
    "LoRA, text": lambda: LoRA("text", rank=2),
    "LoRA, both": lambda: LoRA("both", rank=2),
    "DoRA with MLPs": lambda: PEFT(peft("Lora", r=2, use_dora=True), targets=["q", "v", "mlp"]),
    "VeRA, both": lambda: PEFT(peft("Vera", r=8), "both"),
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
