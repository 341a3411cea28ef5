"""The features of a model: shown to watchers during a test, and computed in the middle of a fit without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from ..metrics.features import Features
from .batch_checks import is_full_batch
from .evaluated_model import EvaluatedModel
from .finite import predicted_classes
from .incoming import Stage
from .tuned_model import Rows
from .tuners.base import Batch, Tuner

Watcher = Callable[[Features, bool], None]


class ObservedModel(EvaluatedModel):
    """An evaluated model that others may watch; see `TunedModel` for the arguments.

    Attributes:
        feature_watchers: Functions that are called with the features of every batch of a test or validation, and
            whether these are zero-shot features. Empty at the start of every fit and test.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.feature_watchers: list[Watcher] = []

    @property
    def has_cosine_logits(self) -> bool:
        """Whether the logits are the scaled cosines of the features that L_ad, L_ra and the watchers see."""
        # The functions are compared, not the methods: FWT's are bound to its inner tuner.
        names = ("logits", "related_features")
        return all(getattr(getattr(self.tuner, name), "__func__", None) is getattr(Tuner, name) for name in names)

    def on_device(self, batch: Any, stage: Stage = "train") -> Batch:
        """Convert and move a batch as the Trainer does before a step."""
        converted = self.trainer.precision_plugin.convert_input(batch)
        return self.incoming(self.trainer.strategy.batch_to_device(converted, self.device), stage)

    def _count_predictions(self, batch: Batch) -> Tensor:
        """Count predictions, and show the features that they come from."""
        self.keeps_passed, self._passed = bool(self.feature_watchers), None
        predicted = super()._count_predictions(batch)
        if self._passed is not None:
            features = self._seen(self._passed, batch)
            for watch in self.feature_watchers:
                watch(features, self._zero_shot)
        self.keeps_passed, self._passed = False, None
        return predicted

    def _seen(self, passed: tuple[Tensor, Tensor], batch: Batch) -> Features:
        """Return the features of a forward pass, those of plain rows only."""
        images, texts = passed
        labels = batch["labels"]
        plain = Rows.of(batch).plain
        if plain is not None:
            images, labels = images[plain], labels[plain]
        return Features(images if self._zero_shot else self.tuner.related_features(images), texts, labels)

    # In the middle of a fit

    def support_batches(self, batch: Any = None) -> Iterable[Any] | None:
        """Return batches of the support images, class by class; None where nobody has them.

        A data module has them if it has a method `support_batches`, as those of dtrap do. Otherwise the training batch
        is used if it is the whole support batch.

        Args:
            batch: The last training batch.
        """
        source = getattr(self.data_source, "support_batches", None)
        if source is not None:
            return _made_later(source)
        full = is_full_batch(self.data_source, self.trainer.train_dataloader)
        whole = full or (full is None and self.trainer.num_training_batches == 1)
        return [batch] if whole and batch is not None else None

    def query_batches(self, *, streamed: bool = False) -> Iterable[Any] | None:
        """Return batches of the queries in a fit; None where they are not known before the test.

        A data module knows them if it has `has_query` and `query_in_views`, as those of dtrap do.

        Args:
            streamed: Whether to return those of a whole test split, too, which takes as long as a test.
        """
        datamodule = self.data_source
        if not getattr(datamodule, "has_query", False) or not hasattr(datamodule, "query_in_views"):
            return None
        if getattr(datamodule, "streams", False) and not streamed:
            return None
        return _made_later(datamodule.test_dataloader)

    def observe(self, batches: Iterable[Any], *, zero_shot: bool = False, views: bool = False) -> Features:
        """Return the features of the plain rows of batches in evaluation mode; a fit goes on as if nothing was done.

        Args:
            batches: Batches as a training step gets them.
            zero_shot: Whether to use the backbone without the tuner.
            views: Whether to return all rows, and which of them are plain.
        """
        with self._aside(), self.zero_shot() if zero_shot else nullcontext():
            texts, images, labels, plain = self.text_features(), [], [], []
            for batch in batches:
                taken = self.on_device(batch if views else plain_part(batch))
                features = self.image_features(taken["images"], Rows.of(taken).ids)
                images.append(features if zero_shot else self.tuner.related_features(features))
                labels.append(taken["labels"])
                view = taken.get("view")
                plain.append(torch.ones_like(labels[-1], dtype=torch.bool) if view is None else view == 0)
        return Features(torch.cat(images), texts, torch.cat(labels), torch.cat(plain) if views else None)

    def observed_hits(self, batches: Iterable[Any]) -> tuple[int, int]:
        """Return how many images of batches are right, all views of each used as in a test, and how many there are."""
        right, images = 0, 0
        with self._aside():
            for batch in batches:
                taken = self.on_device(batch)
                scores = self._scores(taken)
                right += int((predicted_classes(scores) == taken["labels"][: len(scores)]).sum())
                images += len(scores)
        return right, images

    def observed_scores(self, batches: Iterable[Any], *, zero_shot: bool = False) -> Tensor:
        """Return the scores [N, W] of the plain rows of batches in evaluation mode, as a prediction has them.

        Args:
            batches: Batches as a training step gets them.
            zero_shot: Whether to use the backbone without the tuner.
        """
        scores = []
        with self._aside(), self.zero_shot() if zero_shot else nullcontext():
            for batch in batches:
                taken = self.on_device(plain_part(batch))
                scores.append(self(taken["images"], Rows.of(taken).ids))
        return torch.cat(scores)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Within it, the model is in evaluation mode; afterwards modes and all random generators are as before."""
        modes = [(part, part.training) for part in self.modules()]
        context = self.trainer.precision_plugin.forward_context()
        with isolate_rng(include_cuda=self.device.type == "cuda"), torch.no_grad(), context:
            self.train(False)
            self._observing = True
            try:
                yield
            finally:
                self._observing = False
                for part, training in modes:
                    part.training = training


def _made_later(make: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Yield batches that are made when the first is asked for: what is random in it must not reach the training."""
    yield from make()


def plain_part(batch: Any) -> Any:
    """Return the rows of a batch with view 0; the batch itself if it has no views, or no others."""
    view = batch.get("view") if isinstance(batch, Mapping) else None
    if not isinstance(view, Tensor) or not bool(view.any()) or bool((view != 0).all()):
        return batch
    plain = (view == 0).nonzero().flatten()
    return {
        name: column[plain.to(column.device)] if isinstance(column, Tensor) and len(column) == len(view) else column
        for name, column in batch.items()
    }
