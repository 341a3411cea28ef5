"""Files with the features of an episode before and after the training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save
from torch import Tensor

from ..callbacks.feature_collector import FeatureCollector, support_features
from ..datamodules.few_shot import FewShotDataModule
from ..files import write_atomically
from ..metrics.features import Features
from .run_folder import RESUMES


class FeatureFile(FeatureCollector):
    """Collects the features of support and queries, without the tuner and with the trained one.

    Attributes:
        before: Features of the support and of the queries without the tuner.
        after: The same with the tuner at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Features] = {}
        self.after: dict[str, Features] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the queries of the zero-shot test."""
        if self.zero_shot_features is not None:
            self.before["query"] = self.zero_shot_features

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the support without the tuner after the first step, which encodes the images of a frozen tower."""
        self._take_support(pl_module, self.before, zero_shot=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the support at the end, unless a test follows; without any step also the one before."""
        self._take_support(pl_module, self.before, zero_shot=True)
        if not getattr(pl_module.data_source, "has_query", False):
            self._take_support(pl_module, self.after)

    def tested(self, trainer: Trainer, pl_module: LightningModule, features: Features) -> None:
        """Take queries and support at the end."""
        self.after["query"] = features
        self._take_support(pl_module, self.after)

    def _take_support(self, pl_module: LightningModule, into: dict[str, Features], *, zero_shot: bool = False) -> None:
        if "support" not in into:
            features = support_features(pl_module, None, zero_shot=zero_shot)
            if features is not None:
                into["support"] = features

    def save(self, path: Path, class_names: Sequence[str]) -> None:
        """Write the file atomically.

        It has `before.image` and `after.image` [S+Q, D], support first, `before.text` and `after.text` [W, D], in
        float32, `labels` [S+Q] and `is_query` [S+Q]. The metadata `class_names` are a JSON list.

        Raises:
            DtrapError: It cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for moment, parts in (("before", self.before), ("after", self.after)):
            found = {name: parts[name] for name in ("support", "query") if name in parts}
            tensors[f"{moment}.image"] = torch.cat([features.images for features in found.values()])
            tensors[f"{moment}.text"] = next(iter(found.values())).texts
            tensors["labels"] = torch.cat([features.labels for features in found.values()])
            tensors["is_query"] = torch.cat(
                [torch.full((len(f.labels),), name == "query") for name, f in found.items()]
            )
        # Copies: the texts of a frozen tower may be the same tensor before and after, which safetensors refuses.
        exact = {name: (t.float() if t.is_floating_point() else t).clone() for name, t in tensors.items()}
        content = save(exact, {"class_names": json.dumps(class_names)})
        write_atomically(path, content, RESUMES)


def feature_bytes(module: Any, data: FewShotDataModule) -> int:
    """Return the size of the file of one episode, whose images are about as many as those of the current one."""
    images = len(data.task.classes) * data.shot + sum(map(len, data.task.query))
    return 2 * 4 * module.backbone.feature_dim * (images + len(data.task.classes))
