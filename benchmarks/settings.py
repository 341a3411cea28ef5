"""What a run of the suite measures with, and the checkout of an earlier commit that it compares with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Settings:
    """Model, device and size of the measurements.

    Attributes:
        model: "vit" for CLIP ViT-B/16 with random weights, "tiny" for the demo's model, to try the suite.
        device: "cpu" or "cuda".
        threads: Threads of torch.
        repeats: Samples of each figure; the median counts.
        precision: Of Lightning's Trainer, for both sides.
        before: A checkout of an earlier commit, measured in a process of its own in turn with this one.
        folder: For files that are deleted at the end.
        deadline: `time.monotonic()` after which no further sample is taken; None for none.
    """

    model: str = "vit"
    device: str = "cpu"
    threads: int = 1
    repeats: int = 10
    precision: str = "32-true"
    before: str | None = None
    folder: str = "."
    deadline: float | None = None

    @property
    def tiny(self) -> bool:
        """Whether the suite is only tried."""
        return self.model == "tiny"

    @property
    def block(self) -> int:
        """Steps of one sample: a step on a GPU must not wait for the one before."""
        return 10 if self.device == "cuda" else 1

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def enough(self, samples: int) -> bool:
        """Return whether there are enough samples: those asked for, or three where the time is up."""
        return samples >= self.repeats or (samples >= 3 and self.seconds_left <= 0)

    def environment(self, *, before: bool = False, **more: str) -> dict[str, str]:
        """Return the environment of a process that imports this checkout's dtrap as this process does, or the other."""
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"} | more
        environment["OMP_NUM_THREADS"] = str(self.threads)
        if before:
            place = Path(self.folder) / "before"
            place.mkdir(exist_ok=True)
            if not (place / "dtrap").exists():
                (place / "dtrap").symlink_to(Path(str(self.before)).resolve())
            others = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = str(place) + (os.pathsep + others if others else "")
        return environment

    def python(self, *words: str, before: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these words in the checkout's folder until it ends."""
        environment = self.environment(before=before, **more)
        return subprocess.run([sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True)

    def task(self, name: str, **arguments: Any) -> str:
        """Return the word of the command line that tells `worker` what to do."""
        return json.dumps({"task": name, "settings": asdict(self) | {"deadline": None}, "arguments": arguments})
