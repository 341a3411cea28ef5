"""What is reported next to accuracy where classes differ in their numbers of test images, or are ranked by a score."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_auroc,
    multiclass_f1_score,
    multiclass_recall,
)

from .exact_interval import exact_interval

CALIBRATION_BINS = 15
# What is logged of a validation or test, as far as it is known, see `evaluation_numbers`.
LOGGED = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "images",
    "balanced_accuracy",
    "macro_f1",
    "cross_entropy",
    "calibration_error",
    "auroc",
)


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the logarithms [N, W] of the class probabilities in float64 on the CPU, the mean over the views.

    They are finite where the logits are: a probability of 1e-90 is 0 in float32.

    Args:
        logits: [V, N, W] of each image's views.
    """
    exact = logits.detach().cpu().double().log_softmax(dim=-1)
    return exact[0] if len(exact) == 1 else exact.logsumexp(dim=0) - math.log(len(exact))


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


def evaluation_numbers(counts: Tensor, confidence: Confidence, ranking: Ranking) -> dict[str, float]:
    """Return what is logged of a validation or test: accuracy with its exact interval in percent, and the like.

    Args:
        counts: Confusion [W, W] on the CPU, rows true classes.
        confidence: What was kept of the class probabilities.
        ranking: What was kept for the area under the ROC curve.
    """
    right, images = int(counts.diag().sum()), int(counts.sum())
    numbers = {"accuracy": 100.0 * right / max(images, 1), "images": float(images), **balanced_metrics(counts)}
    if images:
        numbers["accuracy_low"], numbers["accuracy_high"] = exact_interval(right, images)
    numbers |= confidence.measures(images)
    if ranking.auroc is not None:
        numbers["auroc"] = ranking.auroc
    return numbers


class Confidence:
    """Cross-entropy and calibration error of a test, of which a sum and two numbers for each image are kept.

    Attributes:
        columns: Names of the attributes with one row for each image, in batches on the CPU.
        loss: Sum of the cross-entropies.
        highest: Probability of the predicted class.
        right: Whether it is the image's class.
    """

    columns = ("highest", "right")

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin a test."""
        self.loss = 0.0
        self.highest: list[Tensor] = []
        self.right: list[Tensor] = []

    def update(self, log_probabilities: Tensor, labels: Tensor, predicted: Tensor) -> None:
        """Add images.

        Args:
            log_probabilities: Logarithms of the class probabilities [N, W] on the CPU.
            labels: Classes [N].
            predicted: Predicted classes [N].
        """
        rows, labels, predicted = torch.arange(len(labels)), labels.cpu(), predicted.cpu()
        self.loss -= float(log_probabilities[rows, labels].sum())
        self.highest.append(log_probabilities[rows, predicted].exp().clamp(max=1.0))
        self.right.append((predicted == labels).long())

    def measures(self, images: int) -> dict[str, float]:
        """Return cross-entropy in nats and calibration error in percent.

        The calibration error is torchmetrics' of several classes with 15 bins and the L1 norm: it needs the highest
        probability only, and whether its class is right.

        Args:
            images: Number of images of the test.

        Returns:
            `cross_entropy` and `calibration_error`; {} if the test is not the one of these images, or has none.
        """
        if not images or images != sum(map(len, self.highest)):
            return {}
        error = binary_calibration_error(torch.cat(self.highest), torch.cat(self.right), CALIBRATION_BINS, "l1")
        return {"cross_entropy": self.loss / images, "calibration_error": 100.0 * float(error)}


class KeptScores:
    """Keeps the scores of a test for a file of predictions.

    Attributes:
        wanted: Whether tests with the tuner keep them; 50,000 images of 1,000 classes need 200 MB.
        scores: [N, W] of each batch, float32 on the CPU; the softmax of a row are the class probabilities.
        labels: Classes [N] of each batch.
        sample_ids: Identities [N] of the images of each batch.
        zero_shot_wanted: Whether the scores of a test without the tuner are kept, too. Only in one process.
        zero_shot_scores: [N, W] of each batch of the last test without the tuner, in its order of the images.
        zero_shot_ids: Identities [N] of these images.
        columns: Names of the attributes with one row for each image.
    """

    columns = ("scores", "labels", "sample_ids")

    def __init__(self) -> None:
        self.wanted = self.zero_shot_wanted = False
        self.zero_shot_scores: list[Tensor] = []
        self.zero_shot_ids: list[Tensor] = []
        self.start(kept=False)

    def start(self, *, kept: bool, zero_shot: bool = False) -> None:
        """Begin a validation or test, which is kept if it should be and scores are wanted."""
        self._kept = kept and self.wanted and not zero_shot
        self._zero_shot = kept and self.zero_shot_wanted and zero_shot
        if self._zero_shot:
            self.zero_shot_scores, self.zero_shot_ids = [], []
        self.scores: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.sample_ids: list[Tensor] = []

    def update(self, scores: Tensor, labels: Tensor, sample_ids: Tensor | None) -> None:
        """Add images, see the attributes."""
        if self._kept and sample_ids is not None:
            self.scores.append(scores.detach().cpu().float())
            self.labels.append(labels.cpu())
            self.sample_ids.append(sample_ids[: len(labels)].cpu())
        if self._zero_shot and sample_ids is not None:
            self.zero_shot_scores.append(scores.detach().cpu().float())
            self.zero_shot_ids.append(sample_ids[: len(labels)].cpu())

    def zero_shot_of(self, sample_ids: Tensor) -> Tensor | None:
        """Return the scores [N, W] of these images in a test without the tuner; None if none was kept of just them."""
        known = torch.cat(self.zero_shot_ids) if self.zero_shot_ids else sample_ids[:0]
        return torch.cat(self.zero_shot_scores) if len(known) and torch.equal(known, sample_ids) else None


class Ranking:
    """Keeps the class probabilities of a test, for the area under the ROC curve.

    Attributes:
        wanted: Whether probabilities are kept; a test of many classes would need much memory.
        probabilities: [N, W] of each batch, in float64 on the CPU.
        labels: Classes [N] of each batch.
        columns: Names of the attributes with one row for each image.
    """

    columns = ("probabilities", "labels")

    def __init__(self) -> None:
        self.start(wanted=False)

    def start(self, *, wanted: bool) -> None:
        """Begin a test."""
        self.wanted = wanted
        self.probabilities: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, scores: Tensor, labels: Tensor, *, views: int = 1) -> None:
        """Add images.

        Args:
            scores: Logits [N, W], or if `views` > 1 the sum of the class probabilities of that many views.
            labels: Classes [N].
            views: Number of views whose probabilities were added up.
        """
        if self.wanted:
            exact = scores.detach().cpu().double()  # in half precision, confident scores would be tied
            self.probabilities.append(exact.softmax(dim=-1) if views == 1 else exact / views)
            self.labels.append(labels.cpu())

    @property
    def auroc(self) -> float | None:
        """Area under the ROC curve in percent, the mean over the classes, one against the rest.

        None if it is not wanted, or if fewer than two classes have test images.
        """
        if not self.labels:
            return None
        probabilities, labels = torch.cat(self.probabilities), torch.cat(self.labels)
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
