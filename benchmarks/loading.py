"""Images per second of the all-way training stream and of a bare torch DataLoader, from 5,000 JPEG files.

The files have 500 x 400 pixels and lie in the class folders of EuroSAT. Both sides decode with Pillow, crop at random
(bicubic), flip and normalize to 224 x 224, in batches of 32 with two workers. A round is two epochs of each in turn, an
epoch one pass over the files; the bar holds for the median of the rounds' ratios. Linux only.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dtrap.datamodules import EuroSATDataModule
from dtrap.datamodules.eurosat import CLASS_NAMES
from dtrap.datamodules.streams import TrainingSteps, TrainingStream
from dtrap.datamodules.views import CLIP_MEAN, CLIP_STD
from measuring import verdict
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

BATCH, WORKERS, EPOCHS = 32, 2, 2
LEAST_RATIO = 0.9


def make_folders(root: Path, images: int, pictures: int = 16) -> None:
    """Write the class folders; the files share the content of a few different pictures."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(pictures):
        coarse = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).resize((500, 400))
        noise = rng.integers(-12, 13, (400, 500, 3))
        file = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        contents.append(file.getvalue())
    folders = [root / name for name in CLASS_NAMES]
    for folder in folders:
        folder.mkdir()
    for number in range(images):
        (folders[number % len(folders)] / f"{number:05d}.jpg").write_bytes(contents[number % pictures])


class PlainFiles(Dataset[tuple[Tensor, int]]):
    """The files of an index, as one writes a data set without this package."""

    def __init__(self, paths: list[str], labels: list[int]) -> None:
        self.paths, self.labels = paths, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(224, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(CLIP_MEAN, CLIP_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.paths[number]).convert("RGB")), self.labels[number]


class Rate:
    """Images per second of wall time, and per second of processor time of this process and its workers."""

    def __init__(self) -> None:
        self.images, self.seconds, self.processor_seconds = 0, 0.0, 0.0

    def add_epoch(self, batches: Iterable[Any], expected: int) -> None:
        """Draw every batch of an epoch; its workers have ended when this returns."""
        began, began_processor = time.perf_counter(), _processor_seconds()
        images = sum(len(batch["images"] if isinstance(batch, dict) else batch[0]) for batch in batches)
        self.seconds += time.perf_counter() - began
        self.processor_seconds += _processor_seconds() - began_processor
        if images != expected:
            raise RuntimeError(f"an epoch had {images} images, expected {expected}")
        self.images += images

    def __str__(self) -> str:
        return f"{self.images / self.seconds:.0f} images/s ({self.images / self.processor_seconds:.0f} a CPU second)"


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def build(root: Path) -> tuple[TrainingStream, DataLoader[tuple[Tensor, int]]]:
    """Our stream over all files and the bare loader, with the same number of whole batches an epoch."""
    index = EuroSATDataModule(root).index
    steps = len(index.paths) // BATCH
    data = EuroSATDataModule(root, num_workers=WORKERS)
    images = [found.tolist() for found in data.positions]
    ours = TrainingStream(data, TrainingSteps(data, images, 1, BATCH, crops=True), steps)
    files = PlainFiles(index.paths, index.labels)
    return ours, DataLoader(files, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)


def compare(ours: TrainingStream, bare: DataLoader[tuple[Tensor, int]], rounds: int) -> list[float]:
    """Ratio of our rate to the bare one in each round; which one begins an epoch alternates."""
    ratios = []
    images = len(bare) * BATCH
    for number in range(rounds):
        rates = {"ours": Rate(), "bare": Rate()}
        for epoch in range(EPOCHS):
            ours.sampler.set_epoch(EPOCHS * number + epoch)
            for name, loader in (("ours", ours), ("bare", bare))[:: 1 if epoch % 2 == 0 else -1]:
                rates[name].add_epoch(loader, images)
        ratios.append(rates["bare"].seconds / rates["ours"].seconds)
        print(f"all-way stream {rates['ours']}, bare {rates['bare']}: {ratios[-1]:.1%}", flush=True)
    return ratios


def main() -> int:
    """Generate the files, measure, and compare with the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3, help="of two epochs each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_folders(Path(folder), arguments.images)
        ratios = compare(*build(Path(folder)), arguments.rounds)
    ratio = statistics.median(ratios)
    met = ratio >= LEAST_RATIO
    print(f"{ratio:.1%} of the bare loader's rate (bar {LEAST_RATIO:.0%}): {verdict(met)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
