"""The models and the batch that are measured, with random pixels; used with earlier versions of dtrap, too."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import dtrap
import open_clip
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules.batches import Batch, Batches, FullBatches
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import CoOp, LoRA, MaPLe, Tuner
from lightning.pytorch import Callback, LightningDataModule, Trainer

from .plain import PlainModel, PlainTraining
from .settings import Settings

WAY, VIEWS, QUERIES = 5, 5, 75
CLASSES = ["Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road", "Industrial Buildings"]
NAME = "ViT-B-16-quickgelu"
TINY = Path(dtrap.__file__).parent / "assets" / "tiny_clip.json"


def config_of(settings: Settings) -> dict[str, Any]:
    """Return the content of the open_clip config."""
    return json.loads(TINY.read_text()) if settings.tiny else dict(open_clip.get_model_config(NAME))


def image_side(settings: Settings) -> int:
    """Return the side of the images in pixels."""
    return config_of(settings)["vision_cfg"].get("image_size", 224)


def context_tokens(settings: Settings) -> int:
    """Return the number of CoOp's context tokens: 16, of which the tiny model's 16 tokens in all leave four."""
    return 4 if settings.tiny else 16


def tuner(settings: Settings, method: str) -> Tuner:
    """Return the tuner of a method: LoRA on "vision", "text" or "both", "coop" or "maple"."""
    if method == "coop":
        return CoOp(context_tokens(settings))
    return MaPLe() if method == "maple" else LoRA(method)  # type: ignore[arg-type]


def module(settings: Settings, method: str, **options: Any) -> FewShotClassifier:
    """Return backbone of random weights, tuner and objective."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The backbone has random weights")
        backbone = OpenCLIP(TINY.name if settings.tiny else NAME, None)
    return FewShotClassifier(backbone, tuner(settings, method), **options)


def batch(settings: Settings, rows: int = WAY, views: int = VIEWS, way: int = WAY) -> Batch:
    """Return a batch in the order view, class, shot."""
    side = image_side(settings)
    images = torch.randn(views * rows, 3, side, side, generator=torch.Generator().manual_seed(1))
    numbers = torch.arange(rows)
    return {
        "images": images,
        "labels": (numbers * way // rows).repeat(views),
        "view": torch.arange(views).repeat_interleave(rows),
        "sample_id": numbers.repeat(views),
    }


class Support(LightningDataModule):
    """The same full batch at every step, and queries.

    Args:
        content: The batch.
        steps: Steps of the run.
        class_names: The classes.
        queries: The batch of a test.
    """

    template = "a photo of a {}."
    fixed_views = True

    def __init__(
        self, content: Batch, steps: int, class_names: list[str] = CLASSES, queries: Batch | None = None
    ) -> None:
        super().__init__()
        self.content, self.steps, self.class_names, self.queries = content, steps, class_names, queries

    def episode_seed(self, purpose: str) -> int:
        """Return the same start in every run."""
        return 0

    def train_dataloader(self) -> FullBatches:
        """Return the full batch for every step."""
        return FullBatches([self.content] * self.steps)

    def test_dataloader(self) -> Batches:
        """Return the queries."""
        return Batches([] if self.queries is None else [self.queries])


def trainer(settings: Settings, *callbacks: Callback, precision: str | None = None) -> Trainer:
    """Return a quiet Trainer whose run is in the suppressed stage to its end."""
    return Trainer(
        accelerator="gpu" if settings.device == "cuda" else "cpu",
        devices=1,
        precision=precision or settings.precision,  # type: ignore[arg-type]
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StageSwitch(stop=1), *callbacks],
    )


def plain_training(settings: Settings, method: str, precision: str | None = None) -> PlainTraining:
    """Return the authors' form of the same training."""
    torch.manual_seed(0)
    model = PlainModel(config_of(settings), method, CLASSES, context_tokens(settings)).to(settings.device)
    content = {name: column.to(settings.device) for name, column in batch(settings).items()}
    return PlainTraining(model, content, precision or settings.precision)
