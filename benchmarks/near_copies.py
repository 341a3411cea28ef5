"""`dtrap data check` on 10,000 JPEG files of 256 x 256 pixels with 20 planted copies.

The pictures are cut out of the photos of a folder (`--photos`, with its sub-folders), at random places and
sizes, or drawn where none is given. A copy is resized, compressed again, mirrored, or all of these. Figures: wall and
CPU seconds of the whole command in a new process, the copies that are listed, and pairs that were not planted; cuts of
one photo may overlap.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from dtrap.datamodules.walk import list_images
from measuring import verdict
from PIL import Image, ImageOps

SECONDS, SIDE, PLANTED, CLASSES = 120.0, 256, 20, 10

COPIES: list[tuple[str, Callable[[Image.Image], Image.Image], int]] = [
    ("half the size", lambda image: image.resize((SIDE // 2, SIDE // 2)), 90),
    ("twice the size", lambda image: image.resize((2 * SIDE, 2 * SIDE)), 90),
    ("JPEG quality 40", lambda image: image, 40),
    ("mirrored", ImageOps.mirror, 90),
    ("all of these", lambda image: ImageOps.mirror(image.resize((SIDE // 2, SIDE // 2))), 60),
]


def drawn(rng: np.random.Generator) -> Image.Image:
    """Return a picture with large and small structure."""
    parts = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).resize(
                (SIDE, SIDE), Image.Resampling.BICUBIC
            ),
            dtype=float,
        )
        for side in (4, 9, 30)
    ]
    return Image.fromarray(np.average(parts, axis=0, weights=(3, 2, 1)).astype(np.uint8))


def cut(photos: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Return a piece of one of the photos, turned by a multiple of 90 degrees."""
    photo = photos[int(rng.integers(len(photos)))]
    side = int(rng.integers(min(photo.size) // 3, min(photo.size)))
    left, top = (int(rng.integers(whole - side)) for whole in photo.size)
    piece = photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return piece.rotate(90 * int(rng.integers(4)))


def make_images(root: Path, count: int, photos: Path | None) -> set[str]:
    """Write class folders and return the paths of the copies, relative to the root."""
    rng = np.random.default_rng(0)
    opened = [Image.open(path).convert("RGB") for path in list_images(photos, recursive=True)] if photos else []
    originals = set(rng.choice(count, PLANTED, replace=False).tolist())
    planted = set()
    for number in range(count):
        folder = root / f"class_{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        image = cut(opened, rng) if opened else drawn(rng)
        image.save(folder / f"{number:05d}.jpg", quality=95)
        if number in originals:
            _, change, quality = COPIES[len(planted) % len(COPIES)]
            other = root / f"class_{(number + 1) % CLASSES}"
            other.mkdir(parents=True, exist_ok=True)
            change(image).save(other / f"copy_of_{number:05d}.jpg", quality=quality)
            planted.add(f"class_{(number + 1) % CLASSES}/copy_of_{number:05d}.jpg")
    return planted


def main() -> int:
    """Write the images, check them and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--photos", type=Path, help="folder of photos that the images are cut out of")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, table = Path(folder) / "images", Path(folder) / "found.csv"
        planted = make_images(root, arguments.images, arguments.photos)
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "dtrap", "data", "check", str(root), "--set", "folder", "--csv", str(table)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        with table.open(newline="") as lines:
            pairs = [{row["first"], row["second"]} for row in csv.DictReader(lines) if row["first"]]
    found = {path for path in planted if any(path in pair for pair in pairs)}
    others = sum(1 for pair in pairs if planted.isdisjoint(pair))
    good = wall < SECONDS and found == planted
    print(
        f"{arguments.images:,} images on {os.cpu_count()} cores: {wall:.0f} s, {used:.0f} s of CPU (bar {SECONDS:g} "
        f"s); {len(found)} of {len(planted)} copies found, {others} other pairs: {verdict(good)}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
