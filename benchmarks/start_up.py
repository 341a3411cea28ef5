"""Time and memory from the end of the imports to the first training step, on an ISIC folder of 10,015 images.

The layout has the class sizes of ISIC 2018 task 3 and JPEG files of 600 x 450 pixels. `dtrap fit` runs one epoch of one
episode in a fresh process, with a small CLIP of random weights for images of 224 x 224 (the batches have their real
size; the time of a large model is not what this measures). Linux only.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from dtrap.commands.fit import fit
from dtrap.commands.parser import parse_methods
from dtrap.protocol.configuration import build_module
from lightning.pytorch import Callback
from PIL import Image
from rich.console import Console

IMAGES_PER_CLASS = {"MEL": 1113, "NV": 6705, "BCC": 514, "AKIEC": 327, "BKL": 1099, "DF": 115, "VASC": 142}
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
SECONDS, MEGABYTES, OPENED = 15.0, 200.0, 5 * (5 + 15)


def make_isic(root: Path, pictures: int = 16) -> None:
    """Write the layout; the files share the content of a few different pictures."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(pictures):
        coarse = Image.fromarray(rng.integers(0, 256, (45, 60, 3), dtype=np.uint8)).resize((600, 450))
        noise = rng.integers(-12, 13, (450, 600, 3))
        pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=85)
        contents.append(file.getvalue())
    images = root / "ISIC2018_Task3_Training_Input"
    table = root / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv"
    images.mkdir(parents=True)
    table.parent.mkdir()
    labels = rng.permutation(np.repeat(np.arange(len(IMAGES_PER_CLASS)), list(IMAGES_PER_CLASS.values())))
    rows = [",".join(["image", *IMAGES_PER_CLASS])]
    for number, label in enumerate(labels):
        name = f"ISIC_{24306 + number:07d}"
        (images / f"{name}.jpg").write_bytes(contents[number % pictures])
        rows.append(",".join([name, *("1.0" if other == label else "0.0" for other in range(len(IMAGES_PER_CLASS)))]))
    table.write_text("\n".join(rows) + "\n")


def resident_megabytes() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    return psutil.Process().memory_info().rss / 1e6


class FirstStep(Callback):
    """Notes the moment, the memory and the number of opened images when the first training step starts."""

    figures: dict[str, float] | None = None
    opened = 0

    def on_train_batch_start(self, *_: object) -> None:
        """Keep the figures of the first call."""
        if FirstStep.figures is None:
            FirstStep.figures = {
                "moment": time.monotonic(),
                "megabytes": resident_megabytes(),
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
                "opened": FirstStep.opened,
            }


def count_opened_images() -> None:
    """Count every `PIL.Image.open` from now on; a file that is not opened is not decoded."""
    original = Image.open

    def counted(*arguments: Any, **options: Any) -> Image.Image:
        FirstStep.opened += 1
        return original(*arguments, **options)

    Image.open = counted


def measure(words: list[str]) -> dict[str, float]:
    """Figures of one run of `dtrap fit` with these words, relative to the end of the imports."""
    imported = time.monotonic()
    count_opened_images()
    fit(words, Console(quiet=True))
    figures = FirstStep.figures
    if figures is None:
        raise RuntimeError("no training step was taken")
    return {**figures, "seconds": figures["moment"] - imported}


def measure_model(words: list[str]) -> dict[str, float]:
    """Resident memory of the imports alone, and of imports and model."""
    imports = resident_megabytes()
    module = build_module(parse_methods(words)[0].parsed)
    return {
        "imports": imports,
        "model": resident_megabytes(),
        "parameters": sum(p.numel() for p in module.parameters()),
    }


def in_new_process(function: str, words: list[str]) -> dict[str, float]:
    """Result of a function of this file in a fresh interpreter."""
    code = f"import json, sys, start_up; print(json.dumps(start_up.{function}(sys.argv[1:])))"
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Generate the files, measure, and compare with the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs; every one has to meet the bars")
    repeats = parser.parse_args().repeats
    met = True
    with tempfile.TemporaryDirectory() as folder:
        root, model = Path(folder) / "isic", Path(folder) / "random.json"
        make_isic(root)
        model.write_text(json.dumps(MODEL))
        words = ["--config", "isic_5shot.yaml", "--data.root", str(root), "--trainer.max_epochs", "1"]
        words += ["--model.backbone.name", str(model), "--model.backbone.pretrained", "null"]
        words += ["--trainer.callbacks+=start_up.FirstStep", "--protocol.episodes", "1"]
        base = in_new_process("measure_model", words)
        print(f"imports {base['imports']:.0f} MB; with the model {base['model']:.0f} MB")
        for number in range(repeats):
            got = in_new_process("measure", [*words, "--protocol.folder", str(Path(folder) / f"run_{number}")])
            growth = got["megabytes"] - base["model"]
            right = got["seconds"] < SECONDS and growth < MEGABYTES and got["opened"] <= OPENED
            met &= right
            print(
                f"first step {got['seconds']:.1f} s after the imports (bar {SECONDS:g}), {growth:.0f} MB over imports "
                f"and model (bar {MEGABYTES:g}; {got['peak'] - base['model']:.0f} MB at the peak), "
                f"{got['opened']:.0f} of {sum(IMAGES_PER_CLASS.values()):,} images opened (bar {OPENED}): "
                f"{'PASS' if right else 'FAIL'}",
                flush=True,
            )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
