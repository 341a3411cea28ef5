"""What a frozen image tower saves, and the memory of prompt learning with many classes, at ViT-B/16 size.

A 5-way 1-shot step in 5 views (25 images of 224 x 224), float32, CoOp or LoRA on the text tower, all three losses,
through `Trainer.fit` in one process: with cached image features, with the images encoded in every step without
gradient, and with a gradient through the image tower, as in the authors' code, which freezes no parameter. Memory: a
CoOp step on the same tower for 100 and 1,000 classes, each in a process of its own. Weights are random; neither time
nor memory depends on them. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

import torch
from dtrap.datamodules.batches import Batch, Batches
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import CoOp, LoRA, Tuner
from lightning.pytorch import LightningDataModule
from measuring import in_new_process, peak_gigabytes, step_seconds, verdict
from torch import Tensor

WAY, SHOT, VIEWS = 5, 1, 5
TIMES_REENCODED, TIMES_BACKPROPAGATED = 5.0, 20.0
PEAK_GB = 6.0
SAME = 1e-4  # relative, after the steps; float32
TUNERS: dict[str, Callable[[], Tuner]] = {
    "CoOp": lambda: CoOp(),
    "text LoRA": lambda: LoRA("text", dropout=0.0),
}


class Support(LightningDataModule):
    """One full batch of random pixels, again in every step.

    Args:
        way: Number of classes.
        rows: Support images per class.
        views: Views of each.
        steps: Steps of the run.
        fixed_views: Whether features of a frozen tower may be kept.
    """

    template = "a photo of a {}."

    def __init__(self, way: int, rows: int, views: int, steps: int, fixed_views: bool) -> None:
        super().__init__()
        self.steps, self.fixed_views = steps, fixed_views
        self.class_names = [f"class {number}" for number in range(way)]
        images = torch.Generator().manual_seed(1)
        self.batch: Batch = {
            "images": torch.randn(views * way * rows, 3, 224, 224, generator=images),
            "labels": torch.arange(way).repeat_interleave(rows).repeat(views),
            "view": torch.arange(views).repeat_interleave(way * rows),
            "sample_id": torch.arange(way * rows).repeat(views),
        }

    def episode_seed(self, purpose: str) -> int:
        """The same start in every run."""
        return 0

    def train_dataloader(self) -> Batches:
        """The full batch in every step."""
        return Batches([self.batch] * self.steps)


def build(tuner: Tuner) -> FewShotClassifier:
    """ViT-B/16 of random weights."""
    torch.manual_seed(0)
    return FewShotClassifier(OpenCLIP("ViT-B-16-quickgelu", None), tuner)


def measure_steps(name: str, steps: int) -> dict[str, float]:
    """Fastest step in seconds of each of the three ways, and the largest relative difference of what was trained."""
    module = build(TUNERS[name]())
    state: dict[str, dict[str, Tensor]] = {}
    seconds = {}
    for way, fixed_views, gradient in (("kept", True, False), ("encoded", False, False), ("through", False, True)):
        module.backbone.model.visual.requires_grad_(gradient)
        count = max(steps, 2) if way != "through" else 1
        taken = step_seconds(module, datamodule=Support(WAY, SHOT, VIEWS, count, fixed_views))
        seconds[way] = min(taken[1:] or taken)
        state[way] = {key: value.detach().clone() for key, value in module.tuner.adapter_state().items()}
        module.zero_grad()
    differences = [
        float((value - state["encoded"][key]).norm() / value.norm().clamp(min=1e-12))
        for key, value in state["kept"].items()
    ]
    return {**seconds, "difference": max(differences)}


def measure_memory(classes: int) -> dict[str, float]:
    """Peak resident memory in GB (10^9 bytes) of a process that makes one CoOp step, and seconds of a step."""
    module = build(CoOp())
    seconds = step_seconds(module, datamodule=few_images(classes))
    return {"gigabytes": peak_gigabytes(), "seconds": min(seconds)}


def few_images(classes: int) -> Support:
    """A mini-batch of 32 images out of many classes."""
    data = Support(WAY, 1, 1, 1, True)
    data.class_names = [f"class {number}" for number in range(classes)]
    images = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    numbers = torch.arange(32)
    labels, view = numbers % classes, torch.zeros_like(numbers)
    data.batch = {"images": images, "labels": labels, "view": view, "sample_id": numbers}
    return data


def compare_steps(names: list[str], steps: int) -> bool:
    """Print the times of the steps; whether all bars are met."""
    met = True
    for name in names:
        figures = measure_steps(name, steps)
        kept, encoded, through = (figures[way] for way in ("kept", "encoded", "through"))
        faster, much_faster = encoded / kept >= TIMES_REENCODED, through / kept >= TIMES_BACKPROPAGATED
        same = figures["difference"] < SAME
        met &= faster and much_faster and same
        print(f"{name}: features kept {kept:.2f} s a step")
        print(f"  images encoded         {encoded:6.2f} s, {encoded / kept:5.1f} times: {verdict(faster)}")
        print(f"  gradient through them  {through:6.2f} s, {through / kept:5.1f} times: {verdict(much_faster)}")
        print(f"  trained values differ by {figures['difference']:.1e} relative: {verdict(same)}", flush=True)
    return met


def compare_memory(counts: list[int], threads: int) -> bool:
    """Print the memory of a step; whether the bar is met."""
    met = True
    for classes in counts:
        figures = in_new_process(__file__, "--only", classes, "--threads", threads)
        below = figures["gigabytes"] < PEAK_GB
        met &= below
        size = f"{figures['gigabytes']:.2f} GB, {figures['seconds']:.0f} s a step"
        print(f"CoOp, {classes} classes: peak {size}: {verdict(below)}", flush=True)
    return met


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuners", nargs="*", default=list(TUNERS), choices=list(TUNERS))
    parser.add_argument("--classes", nargs="*", type=int, default=[100, 1000], help="numbers of classes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=4, help="steps of each way; the fastest one counts")
    parser.add_argument("--only", type=int, help="one memory measurement in this process, as JSON: number of classes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only is not None:
        print(json.dumps(measure_memory(arguments.only)))
        return 0
    print(f"ViT-B/16, {VIEWS * WAY * SHOT} images a step, {arguments.threads} thread(s)")
    steps = compare_steps(arguments.tuners, arguments.steps)
    memory = compare_memory(arguments.classes, arguments.threads)
    return 0 if steps and memory else 1


if __name__ == "__main__":
    sys.exit(main())
