"""Peak memory of training steps, each in a fresh process: growth beyond what model, batch and libraries take."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import models
from .figures import Figure, Part, Report
from .measuring import last_line, peak_gigabytes, status_gigabytes
from .settings import Settings


def measure_here(
    settings: Settings, role: str, method: str, rows: int = 5, views: int = 5, classes: int = 5, **options: Any
) -> dict[str, float]:
    """Return the growth and the peak of two steps in this process, in GB (10^9 bytes).

    Args:
        settings: Model and device.
        role: "ours", or "plain" for the authors' form.
        method: The tuner.
        rows: Support images.
        views: Views of each.
        classes: Number of classes.
        **options: Arguments of the module.
    """
    cuda = settings.device == "cuda"
    if role == "plain":
        training = models.plain_training(settings, method)
        work = [training.step] * 2
    else:
        module = models.module(settings, method, **options)
        names = models.CLASSES if classes == len(models.CLASSES) else [f"class {number}" for number in range(classes)]
        data = models.Support(models.batch(settings, rows, views, classes), 2, names)
        work = [partial(models.trainer(settings).fit, module, datamodule=data)]
    before = 0.0 if cuda else start_again()
    for step in work:
        step()
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else peak_gigabytes()
    return {"growth": peak - before, "peak": peak}


def start_again() -> float:
    """Forget the peak so far, where Linux allows it; return the resident memory in GB."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return status_gigabytes("VmRSS")


def in_process(settings: Settings, *, before: bool = False, **arguments: Any) -> dict[str, float]:
    """Return what `measure_here` measures in a fresh process."""
    done = settings.python("-m", "benchmarks.worker", settings.task("peak", **arguments), before=before)
    return last_line(done)


def measure_step(settings: Settings, report: Report) -> None:
    """Add the memory of the step with LoRA on the image tower."""
    sides = {"memory.step": ("ours", False), "memory.authors": ("plain", False), "memory.before": ("ours", True)}
    for name, (role, before) in sides.items():
        if not before or settings.before is not None:
            found = in_process(settings, before=before, role=role, method="vision")
            report.add(name, found["growth"])


def measure_chunks(settings: Settings, report: Report) -> None:
    """Add the memory of a 5-shot step in chunks."""
    for chunk in (25, 5):
        found = in_process(settings, role="ours", method="vision", rows=25, image_chunk=chunk)
        report.add(f"memory.chunks.{chunk}", found["peak"])


def measure_classes(settings: Settings, report: Report) -> None:
    """Add the memory of CoOp steps with many classes; 32 images, each once."""
    sizes = (100,) if settings.tiny else (100, 1000)
    for classes in sizes:
        arguments = {"role": "ours", "method": "coop", "rows": 32, "views": 1, "classes": classes}
        report.add(f"memory.classes.{classes}", in_process(settings, **arguments)["peak"])


PARTS = (
    Part(
        "memory.step",
        measure_step,
        (
            Figure("memory.step", "LoRA step on 25 images: growth of the memory", "GB", most=4.6),
            Figure("memory.authors", "the same, authors' form", "GB"),
            Figure("memory.before", "the same, earlier commit", "GB"),
        ),
    ),
    Part(
        "memory.chunks",
        measure_chunks,
        (
            Figure("memory.chunks.25", "LoRA step on 125 images, `image_chunk` 25: peak", "GB", most=8),
            Figure("memory.chunks.5", "LoRA step on 125 images, `image_chunk` 5: peak", "GB", most=8),
        ),
    ),
    Part(
        "memory.classes",
        measure_classes,
        (
            Figure("memory.classes.100", "CoOp step, 100 classes: peak", "GB", most=6),
            Figure("memory.classes.1000", "CoOp step, 1,000 classes: peak", "GB", most=6),
        ),
        devices=("cpu",),
    ),
)
