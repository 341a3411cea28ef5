"""Growth of the memory of a run in MB an episode: two methods on tiny episodes, with adapters. Linux only.

The first 50 episodes do not count: caches fill, and the allocator finds its level. The slope is that of a line through
the memory, resident or swapped out, after each later episode.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dtrap.datamodules import ShapesDataModule
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import LoRA
from dtrap.protocol import run_protocol
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from measuring import verdict
from rich.console import Console

WARM_UP = 50
MOST_GROWTH = 0.02


class MemoryLogger(DummyLogger):
    """Keeps the anonymous memory in MB at the end of each episode."""

    def __init__(self) -> None:
        super().__init__()
        self.megabytes: list[float] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # noqa: D102
        # Without the pages of files, such as libraries and weights: the system drops and reads them as it likes.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        self.megabytes.append(sum(int(status[name].split()[0]) for name in ("RssAnon", "VmSwap")) * 1.024e-3)
        if len(self.megabytes) % 50 == 0:
            print(f"episode {len(self.megabytes)}: {self.megabytes[-1]:.1f} MB", flush=True)


def measure(episodes: int, folder: Path) -> list[float]:
    """Run the episodes and return the memory after each."""
    backbone, tuner, memory = OpenCLIP("tiny_clip.json", "tiny_clip.safetensors"), LoRA(rank=4), MemoryLogger()

    def module(weight: float) -> FewShotClassifier:
        return FewShotClassifier(backbone, tuner, Objective(anti_visual_weight=weight, relation_weight=weight))

    trainer: dict[str, Any] = {"max_epochs": 2, "logger": [CSVLogger(folder, name="", version=""), memory]}
    trainer |= {"accelerator": "cpu"}
    run_protocol(
        {"svl-ra": lambda: module(0.1), "baseline": lambda: module(0.0)}, ShapesDataModule(way=5, shot=1, query=2),
        trainer=trainer, episodes=episodes, folder=str(folder), save_adapters=True, console=Console(quiet=True),
    )  # fmt: skip
    return memory.megabytes


def main() -> int:
    """Measure, and compare the slope with the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000)
    episodes = parser.parse_args().episodes
    if episodes <= WARM_UP + 1:
        parser.error(f"--episodes is {episodes}; expected at least {WARM_UP + 2}")
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        megabytes = measure(episodes, Path(folder))
    slope = float(np.polyfit(np.arange(WARM_UP, episodes), megabytes[WARM_UP:], 1)[0])
    met = slope < MOST_GROWTH
    print(f"{episodes} episodes in {time.monotonic() - began:.0f} s: {megabytes[WARM_UP]:.1f} MB after {WARM_UP}, "
          f"{megabytes[-1]:.1f} MB at the end")  # fmt: skip
    print(f"{slope:+.4f} MB an episode after the first {WARM_UP} (bar {MOST_GROWTH}): {verdict(met)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
