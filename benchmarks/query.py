"""From 75 query pictures to an accuracy: their preparation, and the test."""

from __future__ import annotations

import io

import numpy as np
import torch
from dtrap.datamodules.views import CLIP_MEAN, CLIP_STD, Preprocessing, fixed_views
from PIL import Image
from torchvision import transforms

from . import models
from .figures import Figure, Part, Report
from .measuring import timed
from .plain import PlainModel
from .settings import Settings


def measure_test(settings: Settings, report: Report) -> None:
    """Add the time of a test through Lightning's Trainer, and of the image tower with the texts alone."""
    count = 10 if settings.tiny else models.QUERIES
    queries = models.batch(settings, count, views=1)
    module, data = models.module(settings, "vision"), models.Support(models.batch(settings), 1, queries=queries)
    trainer = models.trainer(settings)
    model = PlainModel(models.config_of(settings), "vision", models.CLASSES).to(settings.device).eval()
    model.model.visual.requires_grad_(False)
    for block in model.model.visual.transformer.resblocks:
        merge(block.attn)
    images, labels = queries["images"].to(settings.device), queries["labels"].to(settings.device)

    @torch.no_grad()
    def plain() -> float:
        f, t = (torch.nn.functional.normalize(each, dim=-1) for each in (model.images(images), model.texts()))
        return float(((f @ t.T).argmax(dim=1) == labels).float().mean())

    def ours() -> None:
        trainer.test(module, datamodule=data, verbose=False)

    compare(settings, report, "query.test", ours, plain)


def merge(attention: torch.nn.Module) -> None:
    """Add the adapters to the weights, as the authors do for a test."""
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        with torch.no_grad():
            projection.weight += projection.scale * projection.lora_B @ projection.lora_A
        projection.forward = lambda x, p=projection: torch.nn.functional.linear(x, p.weight, p.bias)


def measure_preparation(settings: Settings, report: Report) -> None:
    """Add the time to prepare a picture: its plain view, and all five views, of which the authors use one."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((500, 400)).save(file, "JPEG", quality=85)
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4)
    every = [
        (transforms.RandomRotation(45), jitter, transforms.RandomHorizontalFlip()),
        (transforms.RandomRotation(45),),
    ]
    every += [(jitter,), (transforms.RandomHorizontalFlip(),), ()]
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(CLIP_MEAN, CLIP_STD)])

    def plain() -> torch.Tensor:
        picture = Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        return torch.stack([to_tensor(transforms.Compose(each)(picture)) for each in every])

    def ours() -> torch.Tensor:
        return fixed_views(Image.open(file).convert("RGB"), Preprocessing(), 1, np.random.default_rng(0))

    compare(settings, report, "query.picture", ours, plain, times=2 if settings.tiny else 20, scale=1000.0)


def compare(settings: Settings, report: Report, name: str, ours, plain, times: int = 1, scale: float = 1.0) -> None:
    """Add the seconds of ours and how many times as long the plain form takes, measured in turn."""
    ours(), plain()  # fills caches
    own: list[float] = []
    other: list[float] = []
    while not settings.enough(len(own)):
        own.append(timed(ours, settings.device, times))
        other.append(timed(plain, settings.device, times))
    report.add(f"{name}.seconds", [scale * seconds for seconds in own])
    report.add_ratios(f"{name}.plain", other, own)


PARTS = (
    Part(
        "query.test",
        measure_test,
        (
            Figure("query.test.seconds", "Test of 75 queries, LoRA on the image tower", "s"),
            Figure(
                "query.test.plain", "Test: times as fast as the authors' form (merged weights, texts again)", "times"
            ),
        ),
    ),
    Part(
        "query.picture",
        measure_preparation,
        (
            Figure("query.picture.seconds", "A query picture of 500 x 400: decoded, resized, normalized", "ms"),
            Figure("query.picture.plain", "Picture: times as fast as with all five views", "times"),
        ),
        devices=("cpu",),
    ),
)
