"""Images per second of the all-way training stream and of a bare torch DataLoader.

The JPEG files have 500 x 400 pixels and lie in the class folders of EuroSAT. Both sides decode with Pillow, crop at
random (bicubic), flip and normalize to 224 x 224, in batches of 32 with two workers. A round is two epochs of each in
turn, an epoch one pass over the files; the bar holds for the median of the rounds' ratios. Linux only.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dtrap.datamodules import EuroSATDataModule
from dtrap.datamodules.eurosat import CLASS_NAMES
from dtrap.datamodules.streams import TrainingSteps, TrainingStream
from dtrap.datamodules.views import CLIP_MEAN, CLIP_STD
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from .figures import Figure, Part, Report
from .settings import Settings
from .start_up import pictures

BATCH, WORKERS, EPOCHS = 32, 2, 2
IMAGES, ROUNDS = 5000, 3


def make_folders(root: Path, images: int) -> None:
    """Write the class folders; the files share the content of a few different pictures."""
    contents = pictures(500, 400)
    folders = [root / name for name in CLASS_NAMES]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(images):
        (folders[number % len(folders)] / f"{number:05d}.jpg").write_bytes(contents[number % len(contents)])


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
    """Images per second of wall time."""

    def __init__(self) -> None:
        self.images, self.seconds = 0, 0.0

    def add_epoch(self, batches: Iterable[Any], expected: int) -> None:
        """Draw every batch of an epoch; its workers have ended when this returns."""
        began = time.perf_counter()
        images = sum(len(batch["images"] if isinstance(batch, dict) else batch[0]) for batch in batches)
        self.seconds += time.perf_counter() - began
        if images != expected:
            raise RuntimeError(f"an epoch had {images} images, expected {expected}")
        self.images += images


def build(root: Path) -> tuple[TrainingStream, DataLoader[tuple[Tensor, int]]]:
    """Our stream over all files and the bare loader, with the same number of whole batches an epoch."""
    index = EuroSATDataModule(root).index
    steps = len(index.paths) // BATCH
    data = EuroSATDataModule(root, num_workers=WORKERS)
    images = [found.tolist() for found in data.positions]
    ours = TrainingStream(data, TrainingSteps(data, images, 1, BATCH, crops=True), steps)
    files = PlainFiles(index.paths, index.labels)
    return ours, DataLoader(files, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)


def measure(settings: Settings, report: Report) -> None:
    """Add the rates of both loaders; which one begins an epoch alternates."""
    root = Path(settings.folder) / "eurosat"
    make_folders(root, 4 * BATCH if settings.tiny else IMAGES)
    ours, bare = build(root)
    images = len(bare) * BATCH
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(1 if settings.tiny else min(ROUNDS, settings.repeats)):
        rates = {"ours": Rate(), "bare": Rate()}
        for epoch in range(EPOCHS):
            ours.sampler.set_epoch(EPOCHS * number + epoch)
            for name, loader in (("ours", ours), ("bare", bare))[:: 1 if epoch % 2 == 0 else -1]:
                rates[name].add_epoch(loader, images)
        for name, rate in rates.items():
            found[name].append(rate.images / rate.seconds)
    report.add("loading.ours", found["ours"])
    report.add("loading.bare", found["bare"])
    ratios = [100 * own / other for own, other in zip(found["ours"], found["bare"], strict=True)]
    report.add("loading.share", statistics.median(ratios))


PARTS = (
    Part(
        "loading",
        measure,
        (
            Figure("loading.ours", "All-way training stream, two workers", "images/s"),
            Figure("loading.bare", "Bare DataLoader with the same transforms", "images/s"),
            Figure("loading.share", "All-way stream: share of the bare rate", "%", least=90),
        ),
        devices=("cpu",),
    ),
)
