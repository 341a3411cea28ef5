"""What AlignmentMonitor adds to an episode of 250 steps at ViT-B/16 size.

A 5-way 1-shot episode with 15 queries a class in 5 views (25 images of 224 x 224 a step), float32, LoRA on the image
tower, all three losses: zero-shot test, a few steps and test through Lightning's Trainer, with every measure at start,
switch and end on queries and support. The time of all calls of the monitor is compared with 250 times the median step;
the two tests are left out of the episode, so that the share is an upper bound. CPU time, which other programs do not
add to. Weights are random; no time depends on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from dtrap.callbacks import AlignmentMonitor, StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from lightning.pytorch import Callback, Trainer
from measuring import verdict

EPISODE = 250
MOST_SHARE = 0.01


class Timed(AlignmentMonitor):
    """The monitor with the CPU time of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}


def timed(name: str) -> Any:
    """Return the monitor's hook of this name with a clock around it."""

    def hook(self: Timed, *arguments: Any) -> None:
        started = time.process_time()
        getattr(AlignmentMonitor, name)(self, *arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started

    return hook


for _name in ("on_train_start", "on_train_batch_end", "on_train_end", "on_test_start", "_take", "on_test_end"):
    setattr(Timed, _name, timed(_name))


class CpuClock(Callback):
    """CPU time of every step, from its batch to its update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: object) -> None:
        """Start the clock."""
        self._started = time.process_time()

    def on_train_batch_end(self, *_: object) -> None:
        """Stop it."""
        self.seconds.append(time.process_time() - self._started)


def main() -> int:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps to measure; 2 or more")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    module = FewShotClassifier(OpenCLIP("ViT-B-16-quickgelu", None))
    data, monitor, clock = ShapesDataModule(way=5, shot=1, query=15), Timed(), CpuClock()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=arguments.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StageSwitch(), clock, monitor],  # the clock before the monitor, whose time is not the step's
    )
    with module.zero_shot():
        trainer.test(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    moments = [entry["moment"] for entry in monitor.entries]
    step, added = statistics.median(clock.seconds), sum(monitor.seconds.values())
    share = added / (EPISODE * step)
    met = share < MOST_SHARE and sorted(moments) == ["end", "start", "switch"]
    print(f"ViT-B/16, {len(clock.seconds)} steps of 25 images, {arguments.threads} thread(s), CPU time")
    print(f"  step {step:.2f} s, monitor {added:.2f} s for an episode: " + ", ".join(
        f"{name} {seconds:.2f}" for name, seconds in monitor.seconds.items() if seconds >= 0.005
    ))  # fmt: skip
    print(f"  {100 * share:.2f} % of {EPISODE} steps (bar: below {100 * MOST_SHARE:.0f} %): {verdict(met)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
