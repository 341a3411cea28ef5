"""What is logged of each of several validation or test loaders."""

from __future__ import annotations

import copy
from typing import Any

from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torchmetrics import Metric

from .evaluation_metrics import Confidence, Ranking, evaluation_numbers


def flat_loaders(loaders: Any) -> list[Any]:
    """Return the loaders of a Trainer in the order of their numbers: one, or those of a list or dictionary."""
    return [] if loaders is None else CombinedLoader(loaders, "sequential").flattened


class LoaderCounts:
    """Counts the predictions of each loader where there are several; of one nothing is counted twice.

    Attributes:
        current: Number of the loader whose batch is counted next.
        confidences: What is kept of the class probabilities of each loader.
        rankings: What is kept of each loader for the area under the ROC curve.
    """

    def __init__(self) -> None:
        self.current = 0
        self.confidences: list[Confidence] = []
        self.rankings: list[Ranking] = []
        self._confusions: list[Metric] = []

    def start(self, loaders: int, confusion: Metric) -> None:
        """Begin a validation or test.

        Args:
            loaders: Number of loaders.
            confusion: An empty confusion of all classes.
        """
        several = range(loaders if loaders > 1 else 0)
        self.confidences, self.rankings = [Confidence() for _ in several], [Ranking() for _ in several]
        self._confusions = [copy.deepcopy(confusion) for _ in several]

    def rank(self, *, wanted: bool) -> None:
        """Say whether the area under the ROC curve is wanted."""
        for ranking in self.rankings:
            ranking.start(wanted=wanted)

    @property
    def kept(self) -> list[Confidence | Ranking]:
        """All that has one row for each image."""
        return [*self.confidences, *self.rankings]

    def update(self, scores: Tensor, certain: Tensor, labels: Tensor, predicted: Tensor, *, views: int) -> None:
        """Count images of the current loader; see `Confidence` and `Ranking`."""
        if not self._confusions:
            return
        self._confusions[self.current].update(predicted, labels)
        self.confidences[self.current].update(certain, labels, predicted)
        self.rankings[self.current].update(scores, labels, views=views)

    def numbers(self, classes: int) -> dict[str, float]:
        """Return the numbers of each loader, named as Lightning names them, such as "accuracy/dataloader_idx_0"."""
        found: dict[str, float] = {}
        each = zip(self._confusions, self.confidences, self.rankings, strict=True)
        for number, (confusion, confidence, ranking) in enumerate(each):
            counts = confusion.compute().cpu()[:classes, :classes]
            numbers = evaluation_numbers(counts, confidence, ranking)
            found |= {f"{name}/dataloader_idx_{number}": value for name, value in numbers.items()}
        return found
