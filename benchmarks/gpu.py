"""What only a GPU shows: a step under each precision, rates of products, idle time, and episodes side by side."""

from __future__ import annotations

import statistics
import warnings

import torch

from . import models, steps
from .episodes import needs, run_demo
from .figures import Figure, Part, Report
from .measuring import NotRunError, product, timed
from .settings import Settings

# Name, precision of the Trainer, whether TF32 is allowed, type of the product.
PRECISIONS = (
    ("32", "32-true", False, "float32"),
    ("tf32", "32-true", True, "float32"),
    ("16", "16-mixed", False, "float16"),
    ("bf16", "bf16-mixed", False, "bfloat16"),
)
TOGETHER = (1, 2, 4, 8, 16)
EPOCHS = (5, 25)


def measure_precision(settings: Settings, report: Report) -> None:
    """Add time, share of the product's rate, memory and idle share of the step with LoRA under each precision."""
    for name, precision, tf32, dtype in PRECISIONS:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            _measure_one(settings, report, f"gpu.{name}", precision, dtype)
        finally:
            torch.set_float32_matmul_precision("highest")


def _measure_one(settings: Settings, report: Report, name: str, precision: str, dtype: str) -> None:
    multiply, gflop = product(settings.device, dtype, settings.tiny)
    cuda = settings.device == "cuda"
    seconds: list[float] = []
    products: list[float] = []
    timed(multiply, settings.device, 20)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def done(taken: float) -> None:
        seconds.append(taken)
        products.append(timed(multiply, settings.device, 100 if cuda else 1))

    counted = steps.run(settings, "vision", lambda: not settings.enough(len(seconds)), done, precision)
    rate, own = gflop / statistics.median(products), counted / statistics.median(seconds)
    report.add(f"{name}.step", [1000 * each for each in seconds])
    report.add(f"{name}.product", rate / 1000)
    report.add(f"{name}.rate", 100 * own / rate)
    if cuda:
        report.add(f"{name}.memory", torch.cuda.max_memory_allocated() / 1e9)
        report.add(f"{name}.idle", steps.profiled(settings, "vision", precision))


def measure_side_by_side(settings: Settings, report: Report) -> None:
    """Add the time of an episode's step with several ViT-B/16 episodes in one batch."""
    needs("side_by_side")
    backbone = [] if settings.tiny else ["--model.backbone.name", models.NAME, "--model.backbone.pretrained", "null"]
    common = [*backbone, "--trainer.callbacks", "[]", "--protocol.compare", "null", "--trainer.precision"]
    few, many = (1, 2) if settings.tiny else EPOCHS
    warnings.filterwarnings("ignore")
    for together in TOGETHER:
        if settings.seconds_left < 60:
            raise NotRunError("the time is up")
        words = [*common, settings.precision, "--protocol.side_by_side", str(together), "--trainer.max_epochs"]
        if settings.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        shorter, longer = (
            run_demo(settings.folder, together, *words, str(epochs), device=settings.device) for epochs in (few, many)
        )
        report.add(f"gpu.together.{together}", 1000 * (longer - shorter) / (many - few) / together)
        if settings.device == "cuda":
            report.add(f"gpu.together.memory.{together}", torch.cuda.max_memory_allocated() / 1e9)


def _precision_figures(name: str, text: str) -> tuple[Figure, ...]:
    return (
        Figure(f"gpu.{name}.step", f"LoRA step on 25 images, {text}", "ms"),
        Figure(f"gpu.{name}.product", f"[4925, 768] x [768, 3072], {text}", "TFLOP/s"),
        Figure(f"gpu.{name}.rate", f"LoRA step, {text}: share of the product's rate", "%"),
        Figure(f"gpu.{name}.memory", f"LoRA step, {text}: peak memory", "GB"),
        Figure(f"gpu.{name}.idle", f"LoRA step, {text}: time in which the device waits", "%"),
    )


TEXTS = {"32": "32-true", "tf32": "32-true with TF32", "16": "16-mixed", "bf16": "bf16-mixed"}
PARTS = (
    Part(
        "gpu.precision",
        measure_precision,
        tuple(figure for name, text in TEXTS.items() for figure in _precision_figures(name, text)),
        devices=("cuda",),
        minutes=1,
    ),
    Part(
        "gpu.together",
        measure_side_by_side,
        tuple(
            figure
            for size in TOGETHER
            for figure in (
                Figure(f"gpu.together.{size}", f"{size} episodes in one batch: a step of one episode", "ms"),
                Figure(f"gpu.together.memory.{size}", f"{size} episodes in one batch: peak memory", "GB"),
            )
        ),
        devices=("cuda",),
        minutes=1.5,
    ),
)
