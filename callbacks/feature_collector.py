"""What callbacks need that look at features: those of a test batch by batch, and those of the support images."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from ..errors import DtrapError
from ..metrics.features import Features

MOST_ROWS = 5000  # measures compare all images with each other


class _Thinned:
    """Rows of a series of batches; of more than `most` rows every 2nd, 4th, ... of the series."""

    def __init__(self, most: int = MOST_ROWS) -> None:
        self.most, self._every, self._seen = most, 1, 0
        self._parts: list[list[Tensor]] = []

    def add(self, *columns: Tensor) -> None:
        """Add rows, the same number in each column."""
        rows = len(columns[0])
        first = -self._seen % self._every
        self._seen += rows
        self._parts.append([column[first :: self._every] for column in columns])
        while sum(len(part[0]) for part in self._parts) > self.most:
            self._parts = [[column[::2] for column in self.joined()]]
            self._every *= 2

    def joined(self) -> list[Tensor]:
        """Return the columns."""
        return [torch.cat(column) for column in zip(*self._parts, strict=True)]


class FeatureCollector(Callback):
    """Base of callbacks that look at the features of a `FewShotClassifier`, in a protocol or a plain Trainer.

    A subclass overrides `tested`. A test within `module.zero_shot()` is the model before its training.

    Attributes:
        zero_shot_features: Features of the queries without the tuner from the last such test before the fit, or None.
            A protocol that tests a split once for several tasks sets them.
    """

    def __init__(self) -> None:
        self.zero_shot_features: Features | None = None
        self._rows = _Thinned()
        self._texts: Tensor | None = None
        self._zero_shot = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module.

        Raises:
            DtrapError: It is not a FewShotClassifier.
        """
        if not hasattr(pl_module, "feature_watchers"):
            raise DtrapError(
                f"{type(self).__name__}: {type(pl_module).__name__} has no features of images and class texts to look "
                "at; expected a dtrap.lightning_modules.FewShotClassifier. For other modules use the classes and "
                "functions of dtrap.metrics."
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the features of this test."""
        self._rows, self._texts = _Thinned(), None
        pl_module.feature_watchers.append(self._take)  # type: ignore[union-attr, operator]

    def _take(self, features: Any, zero_shot: bool) -> None:
        self._rows.add(_exact(features.images), features.labels.detach().cpu())
        self._texts, self._zero_shot = features.texts, zero_shot

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the features of the whole test, gathered from all processes."""
        if self._texts is None:
            return
        images, labels = self._rows.joined()
        features = gathered(trainer, pl_module, Features(images, _exact(self._texts), labels))
        self._rows, self._texts = _Thinned(), None
        if self._zero_shot:
            self.zero_shot_features = features
        else:
            self.tested(trainer, pl_module, features)

    def tested(self, trainer: Trainer, pl_module: LightningModule, features: Features) -> None:
        """Receive the features of the queries at the end of a test that is not zero-shot."""


def gathered(trainer: Trainer, pl_module: LightningModule, features: Features) -> Features:
    """Return the features of the images of all processes, in the order of one process; of very many images some."""
    if trainer.world_size == 1:
        return features
    parts = [gather_all_tensors(each.to(pl_module.device)) for each in (features.images, features.labels)]
    # Image i of process r is image i * P + r of all.
    places = [torch.arange(len(part)) * trainer.world_size + rank for rank, part in enumerate(parts[0])]
    order, rows = torch.cat(places).argsort(), _Thinned()
    rows.add(*(torch.cat([part.cpu() for part in column])[order] for column in parts))
    images, labels = rows.joined()
    return Features(images, features.texts, labels)


def on_cpu(features: Any) -> Features:
    """Return a module's features on the CPU, in float32 at least; of very many images some."""
    rows = _Thinned()
    plain = torch.ones_like(features.labels, dtype=torch.bool) if features.plain is None else features.plain
    rows.add(_exact(features.images), features.labels.detach().cpu(), plain.cpu())
    images, labels, plain = rows.joined()
    return Features(images, _exact(features.texts), labels, plain)


def _exact(features: Tensor) -> Tensor:
    """Return features on the CPU, in float32 at least."""
    return features.detach().to("cpu", torch.promote_types(features.dtype, torch.float32))


def support_features(pl_module: Any, batch: Any, *, zero_shot: bool, views: bool = False) -> Features | None:
    """Return the features of the plain support images, or of all their views; None where nobody has these images."""
    batches = pl_module.support_batches(batch)
    if batches is None:
        return None
    features = on_cpu(pl_module.observe(batches, zero_shot=zero_shot, views=views))
    trainer = pl_module.trainer
    if trainer.world_size == 1 or hasattr(pl_module.data_source, "support_batches"):
        return features
    # Of a loader's batch each process has a part; which rows are plain travels with the labels.
    plain = torch.ones_like(features.labels, dtype=torch.bool) if features.plain is None else features.plain
    marked = gathered(trainer, pl_module, features._replace(labels=2 * features.labels + plain, plain=None))
    return Features(marked.images, features.texts, marked.labels // 2, marked.labels % 2 == 1 if views else None)
