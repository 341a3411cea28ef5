"""Start-up: `import dtrap`, and `dtrap fit` until the first batch of images enters a tower."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from . import models
from .figures import Figure, Part, Report
from .measuring import last_line
from .settings import ROOT, Settings

IMAGES_PER_CLASS = {"MEL": 1113, "NV": 6705, "BCC": 514, "AKIEC": 327, "BKL": 1099, "DF": 115, "VASC": 142}

# The first convolution of an image tower ends the process; pictures are counted when they are opened, since a file that
# is not opened is not decoded.
UNTIL_FIRST_BATCH = """
import json, os, sys, time
import torch
from PIL import Image
opened, original = [0], Image.open
def counted(*arguments, **options):
    opened[0] += 1
    return original(*arguments, **options)
Image.open = counted
def stop(module, inputs):
    if isinstance(module, torch.nn.Conv2d):
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
        found = {"cpu": time.process_time(), "opened": opened[0], "peak": int(peak.split()[1]) * 1024 / 1e9}
        print(json.dumps(found), flush=True)
        os._exit(0)
torch.nn.modules.module.register_module_forward_pre_hook(stop)
from dtrap.cli import main
main(sys.argv[1:])
"""


def pictures(width: int, height: int, count: int = 16) -> list[bytes]:
    """Return the content of a few different JPEG files."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8))
        noise = rng.integers(-12, 13, (height, width, 3))
        file = io.BytesIO()
        pixels = np.clip(np.asarray(coarse.resize((width, height))) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=85)
        contents.append(file.getvalue())
    return contents


def make_isic(root: Path, share: float = 1.0) -> None:
    """Write a share of the layout of ISIC 2018 task 3: 10,015 files in all."""
    contents = pictures(600, 450)
    images = root / "ISIC2018_Task3_Training_Input"
    table = root / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv"
    images.mkdir(parents=True)
    table.parent.mkdir()
    counts = [max(int(count * share), 20) for count in IMAGES_PER_CLASS.values()]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = [",".join(["image", *IMAGES_PER_CLASS])]
    for number, label in enumerate(labels):
        name = f"ISIC_{24306 + number:07d}"
        (images / f"{name}.jpg").write_bytes(contents[number % len(contents)])
        rows.append(",".join([name, *("1.0" if other == label else "0.0" for other in range(len(counts)))]))
    table.write_text("\n".join(rows) + "\n")


def checkpoint(settings: Settings) -> list[str]:
    """Write random weights as a file, once; return the words of the command line that choose them."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    path = Path(settings.folder) / "weights.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = CLIP(**models.config_of(settings)).state_dict()
        # The causal mask is not a weight, and files on the hub do not have it.
        save_file({name: value.contiguous() for name, value in state.items() if name != "attn_mask"}, path)
    name = models.TINY.name if settings.tiny else models.NAME
    return ["--model.backbone.name", name, "--model.backbone.pretrained", str(path)]


def child_seconds(settings: Settings, code: str, *, before: bool = False) -> float:
    """Return the CPU time in seconds of a fresh interpreter."""
    process = subprocess.Popen([sys.executable, "-c", code], env=settings.environment(before=before), cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"python -c '{code}' ended with status {status}")
    process.returncode = 0  # it has been waited for
    return usage.ru_utime + usage.ru_stime


def measure_import(settings: Settings, report: Report) -> None:
    """Add the time of `import dtrap` beyond that of Python."""
    found: dict[str, list[float]] = {"ours": [], "before": []}
    while not settings.enough(len(found["ours"])):
        bare = child_seconds(settings, "pass")
        found["ours"].append(1000 * (child_seconds(settings, "import dtrap") - bare))
        if settings.before is not None:
            found["before"].append(1000 * (child_seconds(settings, "import dtrap", before=True) - bare))
    report.add("start.import", found["ours"])
    if found["before"]:
        report.add("start.import.before", found["before"])


def measure_fit(settings: Settings, report: Report) -> None:
    """Add the CPU time of `dtrap fit` until the first batch enters a tower."""
    root = Path(settings.folder) / "isic"
    if not root.exists():
        make_isic(root, 0.01 if settings.tiny else 1.0)
    words = ["fit", "--config", "isic_1shot.yaml", "--data.root", str(root), "--protocol.episodes", "1"]
    words += [*checkpoint(settings), "--trainer.accelerator", "gpu" if settings.device == "cuda" else "cpu"]
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    sides = [False] if settings.before is None else [False, True]
    for number in range(min(settings.repeats, 3)):
        for before in sides:
            run = Path(settings.folder) / f"start_{number}_{before}"
            command = ["-c", UNTIL_FIRST_BATCH, *words, "--protocol.folder", str(run)]
            found[before].append(last_line(settings.python(*command, before=before)))
    for key in ("cpu", "opened", "peak"):
        report.add(f"start.fit.{key}", [each[key] for each in found[False]])
    if found[True]:
        report.add("start.fit.before", [each["cpu"] for each in found[True]])


PARTS = (
    Part(
        "start.import",
        measure_import,
        (
            Figure("start.import", "`import dtrap`, beyond bare Python", "ms", most=50, any_model=True),
            Figure("start.import.before", "the same, earlier commit", "ms"),
        ),
    ),
    Part(
        "start.fit",
        measure_fit,
        (
            Figure(
                "start.fit.cpu", "`dtrap fit` on 10,015 files until the first batch of images, CPU time", "s", most=12
            ),
            Figure("start.fit.before", "the same, earlier commit", "s"),
            Figure("start.fit.opened", "calls of Image.open until then (80 pictures are needed)"),
            Figure("start.fit.peak", "peak memory until then", "GB"),
        ),
    ),
)
