"""Predictions on worker processes: each labels a part of the images."""

from __future__ import annotations

import copy
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
    """Class probabilities [N, W] of the readable images of a part, and the others with the reasons."""

    probabilities: list[Tensor] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """Images from `start` up to `end`, a whole number of batches except the last one."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"the part with the images {self.start + 1} to {self.end}"


def label(
    module: FewShotClassifier, images: UnlabeledImages, trainer: dict[str, Any], *, progress: bool = False
) -> Labeled:
    """Label images in this process.

    Args:
        module: The model.
        images: The images.
        trainer: The Trainer's arguments.
        progress: Whether to show Lightning's bar.
    """
    with without_expected_warnings():
        labels = episode_trainer(trainer, [], progress=progress)
        with explained_use([*callbacks_of(labels), *parts_of(module)]), tf32_allowed(labels):
            batches: Any = labels.predict(module, images.batches(BATCH_SIZE))
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
    """

    adapter: Path
    card: AdapterCard
    config: Any
    trainer: dict[str, Any]
    images: UnlabeledImages

    def begin(self, worker: Worker) -> Callable[[Part], Labeled]:
        """Load the model."""
        if is_standalone(self.adapter):
            module = load_exported(self.adapter, self.card)
        else:
            module = build_module(self.config)
            load_adapter(self.adapter, module, self.card)

        def run(part: Part) -> Labeled:
            images = copy.copy(self.images)
            images.paths, images.unreadable = self.images.paths[part.start : part.end], []
            labeled = label(module, images, self.trainer)
            return replace(labeled, probabilities=[batch.cpu() for batch in labeled.probabilities])

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
        [batch for labeled in ordered for batch in labeled.probabilities],
        [fault for labeled in ordered for fault in labeled.unreadable],
    )


def concatenated(labeled: Labeled, classes: int) -> Tensor:
    """Return the probabilities [N, W] of all images."""
    return torch.cat(labeled.probabilities) if labeled.probabilities else torch.empty(0, classes)
