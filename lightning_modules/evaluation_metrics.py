"""What is reported next to accuracy where classes differ in their numbers of test images, or are ranked by a score."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_auroc, multiclass_f1_score, multiclass_recall


def balanced_metrics(confusion: Tensor) -> dict[str, float]:
    """Return balanced accuracy and macro-F1 in percent; nothing where every class has as many test images.

    A class without test images has no recall and is left out of the balanced accuracy. In the macro-F1 it counts if an
    image was taken for it. Both are the definitions of scikit-learn.

    Args:
        confusion: Counts [W, W] on the CPU, rows true classes, columns predicted ones.

    Returns:
        `balanced_accuracy` and `macro_f1`, or {}.
    """
    images = confusion.sum(dim=1)
    if len(images.unique()) < 2:
        return {}
    classes = torch.arange(len(confusion))
    pairs = torch.cartesian_prod(classes, classes).repeat_interleave(confusion.flatten(), dim=0)
    labels, predicted = pairs.unbind(dim=1)
    recall = multiclass_recall(predicted, labels, len(confusion), average="none")[images > 0]
    macro_f1 = multiclass_f1_score(predicted, labels, len(confusion), average="macro")
    return {"balanced_accuracy": 100.0 * float(recall.mean()), "macro_f1": 100.0 * float(macro_f1)}


class Ranking:
    """Keeps the class probabilities of a test, for the area under the ROC curve.

    Attributes:
        wanted: Whether probabilities are kept; a test of many classes would need much memory.
    """

    def __init__(self) -> None:
        self.start(wanted=False)

    def start(self, *, wanted: bool) -> None:
        """Begin a test."""
        self.wanted = wanted
        self._probabilities: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, scores: Tensor, labels: Tensor, *, views: int = 1) -> None:
        """Add images.

        Args:
            scores: Logits [N, W], or if `views` > 1 the sum of the class probabilities of that many views.
            labels: Classes [N].
            views: Number of views whose probabilities were added up.
        """
        if self.wanted:
            exact = scores.detach().cpu().double()  # in half precision, confident scores would be tied
            self._probabilities.append(exact.softmax(dim=-1) if views == 1 else exact / views)
            self._labels.append(labels.cpu())

    @property
    def auroc(self) -> float | None:
        """Area under the ROC curve in percent, the mean over the classes, one against the rest.

        None if it is not wanted, or if fewer than two classes have test images.
        """
        if not self._labels:
            return None
        probabilities, labels = torch.cat(self._probabilities), torch.cat(self._labels)
        tested = labels.unique()
        if len(tested) < 2:
            return None
        classes = probabilities.shape[1]
        # A class without images would count as 0 in torchmetrics' own mean, with a warning.
        areas = [
            multiclass_auroc(
                torch.stack([1 - probabilities[:, c], probabilities[:, c]], dim=1), (labels == c).long(), 2
            )
            for c in (tested.tolist() if classes > 2 else [1])
        ]
        return 100.0 * float(torch.stack(areas).mean())
