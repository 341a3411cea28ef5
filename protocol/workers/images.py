"""Predictions on worker processes: each labels a part of the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...datamodules.unlabeled import UnlabeledImages
from ...errors import DtrapError
from ...lightning_modules import FewShotClassifier
from ...signals import STOP
from ..adapters import AdapterCard, is_standalone, load_adapter
from ..configuration import build_module
from ..episode import callbacks_of, episode_trainer, parts_of, without_expected_warnings
from ..explanation import explained_use
from ..export import load_exported
from ..precision import tf32_allowed
from .pool import WorkerPool
from .worker import Worker

BATCH_SIZE = 64
PARTS_OF_A_WORKER = 4  # so that a slow worker delays the end less


@dataclass
class Labeled:
    """Scores of the readable images of a part, as `predict_step` returns them, and the others with the reasons."""

    scores: list[Tensor] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """Images from `start` up to `end`, a whole number of batches except the last one."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"the part with the images {self.start + 1} to {self.end}"


def label(
    module: FewShotClassifier,
    images: UnlabeledImages,
    trainer: dict[str, Any],
    *,
    zero_shot: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Labeled:
    """Compute the scores of images in this process.

    Args:
        module: The model.
        images: The images.
        trainer: The Trainer's arguments.
        zero_shot: Whether to return the scores without the tuner, too.
        batch_size: Most images of a batch.
        progress: Whether to show Lightning's bar.

    Returns:
        Scores [B, 1, W] of each batch, or [B, 2, W] with and without the tuner.
    """
    before, module.predicts = module.predicts, "both scores" if zero_shot else "scores"
    try:
        with without_expected_warnings():
            labels = episode_trainer(trainer, [], progress=progress)
            with explained_use([*callbacks_of(labels), *parts_of(module)]), tf32_allowed(labels):
                batches: Any = labels.predict(module, images.batches(batch_size))
    finally:
        module.predicts = before
    return Labeled(list(batches or []), list(images.unreadable))


@dataclass(frozen=True)
class LabelJob:
    """What the parts of a prediction have in common.

    Attributes:
        adapter: The adapter's file or exported folder, which every node has.
        card: Its card.
        config: The parsed config of its model.
        trainer: The Trainer's arguments.
        images: All images.
        zero_shot: Whether to return the scores without the tuner, too.
    """

    adapter: Path
    card: AdapterCard
    config: Any
    trainer: dict[str, Any]
    images: UnlabeledImages
    zero_shot: bool = False

    def begin(self, worker: Worker) -> Callable[[Part], Labeled]:
        """Load the model."""
        if is_standalone(self.adapter):
            module = load_exported(self.adapter, self.card)
        else:
            module = build_module(self.config)
            load_adapter(self.adapter, module, self.card)

        def run(part: Part) -> Labeled:
            labeled = label(module, self.images.part(part.start, part.end), self.trainer, zero_shot=self.zero_shot)
            return replace(labeled, scores=[batch.cpu() for batch in labeled.scores])

        return run


def label_with(pool: WorkerPool, job: LabelJob, warn: Callable[[str], None]) -> Labeled:
    """Label images on worker processes; the result is that of one process.

    Raises:
        DtrapError: A part cannot be labeled.
    """
    total = len(job.images.paths)
    batches = -(-total // BATCH_SIZE)
    step = BATCH_SIZE * max(1, -(-batches // (PARTS_OF_A_WORKER * pool.count)))
    parts = [Part(start, min(start + step, total)) for start in range(0, total, step)]
    add = pool.add(job)
    for part in parts:
        add(part)
    found: dict[int, Labeled] = {}
    said: set[str] = set()
    while len(found) < len(parts):
        STOP.check()
        finished = pool.next()
        if finished is None:
            continue
        if finished.outcome.error is not None:
            raise DtrapError(finished.outcome.error)
        for _, text in finished.outcome.notes:
            if text not in said:
                said.add(text)
                warn(text)
        found[finished.item.start] = finished.outcome.value
    ordered = [found[part.start] for part in parts]
    return Labeled(
        [batch for labeled in ordered for batch in labeled.scores],
        [fault for labeled in ordered for fault in labeled.unreadable],
    )


def concatenated(labeled: Labeled, classes: int, *, zero_shot: bool = False) -> Tensor:
    """Return the scores [N, 1 or 2, W] of all images in float64 on the CPU."""
    if not labeled.scores:
        return torch.empty(0, 2 if zero_shot else 1, classes, dtype=torch.float64)
    return torch.cat([batch.cpu() for batch in labeled.scores]).double()
