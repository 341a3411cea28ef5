"""Peak memory and time of a 5-way 5-shot training step of ViT-B/16 with and without `image_chunk`.

One step is 125 images (25 support images, 5 views) of 224 x 224, float32, LoRA of rank 16 on q, k and v of the image
tower with dropout 0.25, all three losses. Weights are random; neither memory nor time depends on them. Each setting
runs in a process of its own, through `Trainer.fit`. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys

import psutil
import torch
from dtrap.datamodules.batches import Batch, Batches
from dtrap.lightning_modules import FewShotClassifier, losses
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import LoRA
from measuring import in_new_process, peak_gigabytes, step_seconds, verdict
from torch import Tensor

WAY, SHOT, VIEWS = 5, 5, 5
PEAK_GB = 8.0
GRADIENT_DIFFERENCE = 1e-5
GB_WITHOUT_CHUNKS = 24.0  # with a margin: about 21, from 25 images on


def build(chunk: int | None) -> FewShotClassifier:
    """ViT-B/16 of random weights with the paper's LoRA on the image tower."""
    torch.manual_seed(0)
    backbone = OpenCLIP("ViT-B-16-quickgelu", None)
    module = FewShotClassifier(backbone, LoRA(), image_chunk=chunk)
    module.set_classes([f"class {number}" for number in range(WAY)])
    return module


def support_batch() -> Batch:
    """A batch of random pixels in the order view, class, shot."""
    rows = WAY * SHOT
    return {
        "images": torch.randn(VIEWS * rows, 3, 224, 224),
        "labels": torch.arange(WAY).repeat_interleave(SHOT).repeat(VIEWS),
        "view": torch.arange(VIEWS).repeat_interleave(rows),
        "sample_id": torch.arange(rows).repeat(VIEWS),
    }


def measure_step(chunk: int | None, steps: int) -> dict[str, float]:
    """Peak resident memory of this process in GB (10^9 bytes) after `steps` steps, and the fastest step's seconds."""
    seconds = step_seconds(build(chunk), train_dataloaders=Batches([support_batch()] * steps))
    return {"gigabytes": peak_gigabytes(), "seconds": min(seconds)}


def measure_gradients(images: int = 7) -> dict[str, float]:
    """Largest relative difference of LoRA's gradient with chunks from the one without, at the same seed.

    Chunks of 1, 3 and 5 images. `other_masks` is the difference that another seed's dropout makes.
    """
    module = build(None)
    module.start_task(0)
    module.train()
    for name, value in module.tuner.adapter_state().items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(value, std=0.02)
    pixels, labels, texts = torch.randn(images, 3, 224, 224), torch.arange(images) % WAY, torch.randn(WAY, 512)

    def gradient(chunk: int | None, seed: int) -> Tensor:
        module.image_chunk = chunk
        torch.manual_seed(seed)
        loss = losses.cross_modal_loss(module.image_features(pixels), texts, labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, module.tuner.trained_parameters())])

    whole = gradient(None, 1)
    return {
        "chunks": max(float((gradient(chunk, 1) - whole).norm() / whole.norm()) for chunk in (1, 3, 5)),
        "other_masks": float((gradient(None, 2) - whole).norm() / whole.norm()),
    }


def compare(chunks: list[str], threads: int, steps: int) -> bool:
    """Print the table; whether all bars are met."""
    met = True
    print(f"{'image_chunk':>11}  {'peak memory':>11}  {'seconds a step':>14}  below {PEAK_GB:g} GB")
    for chunk in chunks:
        available = psutil.virtual_memory().available / 1e9
        if chunk == "null" and available < GB_WITHOUT_CHUNKS:
            print(f"{chunk:>11}  left out: needs about {GB_WITHOUT_CHUNKS:g} GB, {available:.1f} GB are free")
            continue
        figures = in_new_process(__file__, "--only", chunk, "--threads", threads, "--steps", steps)
        below = figures["gigabytes"] < PEAK_GB
        met &= below or chunk == "null"
        mark = "no bar" if chunk == "null" else verdict(below)
        print(f"{chunk:>11}  {figures['gigabytes']:8.2f} GB  {figures['seconds']:14.1f}  {mark}", flush=True)
    figures = in_new_process(__file__, "--only", "gradients", "--threads", threads, "--steps", steps)
    same = figures["chunks"] < GRADIENT_DIFFERENCE < figures["other_masks"]
    print(
        f"gradient with chunks differs by {figures['chunks']:.1e} (bar {GRADIENT_DIFFERENCE:g}): {verdict(same)}; "
        f"other dropout masks make a difference of {figures['other_masks']:.1e}"
    )
    return met and same


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", nargs="+", default=["null", "25", "5"], help="values of image_chunk")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=1, help="steps of each setting; the fastest one counts")
    parser.add_argument("--only", help="one measurement in this process, as JSON: an image_chunk, or gradients")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only is None:
        print(f"ViT-B/16, {VIEWS * WAY * SHOT} images a step, {arguments.threads} thread(s)")
        return 0 if compare(arguments.chunks, arguments.threads, arguments.steps) else 1
    if arguments.only == "gradients":
        figures = measure_gradients()
    else:
        figures = measure_step(None if arguments.only == "null" else int(arguments.only), arguments.steps)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
