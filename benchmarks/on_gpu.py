"""What only a GPU shows: diverged trainings under each precision, and resumed steps.

ViT-B/16 with random weights, a 5-way 1-shot step (25 images of 224 x 224), LoRA of rank 16 on the image tower with
dropout 0.25. Prints one line for each figure and exits with 1 if one is not as expected.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules.batches import Batch, FullBatches
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.finite import DivergedError
from dtrap.lightning_modules.tuners import CoOp, LoRA, Tuner
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

WAY, VIEWS = 5, 5


def support_batch(rows: int = WAY) -> Batch:
    """Random pixels in the order view, class."""
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randn(VIEWS * rows, 3, 224, 224, generator=generator),
        "labels": torch.arange(rows).repeat(VIEWS),
        "view": torch.arange(VIEWS).repeat_interleave(rows),
        "sample_id": torch.arange(rows).repeat(VIEWS),
    }


def build(tuner: Tuner, **settings: Any) -> FewShotClassifier:
    """A module with the same random weights, classes of made-up names and a fixed start."""
    torch.manual_seed(0)
    backbone = OpenCLIP("ViT-B-16-quickgelu", None)
    module = FewShotClassifier(backbone, tuner, start_seed=3, **settings)
    module.set_classes([f"class {number}" for number in range(WAY)])
    return module


def trainer(precision: str, steps: int, *callbacks: Callback) -> Trainer:
    """A quiet Trainer on the GPU."""
    return Trainer(
        accelerator="gpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        limit_train_batches=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StageSwitch(), *callbacks],
    )


class SaveEvery(Callback):
    """Writes a checkpoint after each step."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save."""
        trainer.save_checkpoint(self.folder / f"{batch_idx + 1}.ckpt")


def fit(module: FewShotClassifier, run: Trainer, batch: Batch, steps: int, path: Path | None = None) -> str:
    """Train; return the reason if the training diverged."""
    torch.manual_seed(5)
    try:
        run.fit(module, FullBatches([batch] * steps), ckpt_path=path, weights_only=True)
    except DivergedError as error:
        return str(error)
    return ""


def diverging(batch: Batch) -> bool:
    """Print how trainings end under each precision and rate; return whether all ends are as expected."""
    sound = True
    for precision, rate, diverges in (
        ("32-true", None, False),
        ("16-mixed", None, False),
        ("bf16-mixed", None, False),
        ("32-true", 1e30, True),
        ("16-mixed", 1e30, True),
        ("16-true", None, None),
    ):
        module = build(LoRA(), learning_rate=rate)
        reason = fit(module, trainer(precision, 10), batch, 10)
        values = torch.cat([value.flatten().float().cpu() for value in module.tuner.adapter_state().values()])
        honest = bool(reason) or bool(values.isfinite().all())
        sound &= honest and diverges in (None, bool(reason))
        print(f"{precision}, rate {rate or 'default'}: {reason or 'finite'}{'' if honest else ' BUT VALUES ARE NOT'}")
    return sound


def resuming(batch: Batch) -> bool:
    """Print how far trainings resumed from each step are from the uninterrupted one, with dropout."""
    sound = True
    for name, make, precision in (
        ("LoRA, dropout 0.25", LoRA, "32-true"),
        ("LoRA, dropout 0.25", LoRA, "16-mixed"),
        ("CoOp", CoOp, "32-true"),
    ):
        whole, largest = build(make()), 0.0
        with tempfile.TemporaryDirectory() as folder:
            fit(whole, trainer(precision, 10, SaveEvery(folder)), batch, 10)
            expected = [value.detach().float().cpu() for value in whole.tuner.adapter_state().values()]
            for step in range(1, 10):
                resumed = build(make())
                fit(resumed, trainer(precision, 10), batch, 10, Path(folder) / f"{step}.ckpt")
                values = [value.detach().float().cpu() for value in resumed.tuner.adapter_state().values()]
                largest = max(largest, *(float((a - b).abs().max()) for a, b in zip(values, expected, strict=True)))
        size = max(float(value.abs().max()) for value in expected)
        print(f"{name}, {precision}: resumed at each of 9 steps, largest difference {largest:.1e} of {size:.1e}")
        sound &= largest <= 1e-3 * size
    return sound


def main() -> int:
    """Run everything; return the exit status."""
    warnings.filterwarnings("ignore")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    batch = support_batch()
    sound = diverging(batch)
    sound &= resuming(batch)
    print("PASS" if sound else "FAIL")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
