"""Weights of classes with different numbers of training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DtrapError
from .task_data import support_batches
from .tuners.base import Tuner

if TYPE_CHECKING:
    from .few_shot_classifier import FewShotClassifier

BALANCED = "balanced"
STRONG = 5  # times as many images of the largest class as of the smallest


def check_class_weights(value: str | float | None, tuner: Tuner) -> None:
    """Raise a DtrapError unless `value` is "balanced", a number between 0 and 1 or None, and has an effect."""
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != BALANCED and not (number and 0 < float(value) < 1):
        raise DtrapError(
            f"class_weights is {value!r}; expected 'balanced', or a number between 0 and 1 such as 0.99 for the "
            "effective number of images: --model.class_weights balanced"
        )
    if not tuner.takes_class_weights:
        raise DtrapError(
            f"class_weights is {value!r}, but the tuner {tuner.name} has a loss of its own without class weights. "
            "Remove --model.class_weights, or let its loss call self.cross_entropy and set weighs_classes = True."
        )


def class_weights(counts: Sequence[int], kind: str | float) -> Tensor:
    """Return a weight [W] for each class, such that the mean weight of an image is 1.

    Args:
        counts: Number of training images n of each class; a class without one has the weight 0.
        kind: "balanced" for weights that go with 1/n, so that all classes count alike; or beta in (0, 1) for weights
            that go with (1 - beta) / (1 - beta^n), the inverse of the effective number of images, between equal weights
            (beta near 0) and "balanced" (beta near 1): Cui et al., "Class-balanced loss based on effective number of
            samples", CVPR 2019.
    """
    n = torch.tensor(list(counts), dtype=torch.float64)
    if kind == BALANCED:
        raw = 1 / n
    else:
        beta = float(kind)
        raw = (1 - beta) / (1 - beta**n)
    raw[n == 0] = 0.0
    return raw * n.sum() / (raw * n).sum()


def balance_classes(module: FewShotClassifier) -> None:
    """Give the tuner the class weights of the task, or warn where its classes are strongly imbalanced."""
    tuner, kind = module.tuner, module.class_weights
    tuner.class_weights = None
    if kind is not None:
        counts = _counts(module)
        if counts is None:
            module.trainer.fit_loop.setup_data()
            labels = torch.cat([module.on_device(batch)["labels"].cpu() for batch in support_batches(module)])
            counts = torch.bincount(labels, minlength=len(module.class_prompts.class_names)).tolist()
        tuner.class_weights = class_weights(counts, kind).to(module.device, torch.float32)
    elif tuner.trained_parameters() and not getattr(module.data_source, "balanced_batches", False):
        _warn_of_imbalance(module)


def _counts(module: FewShotClassifier) -> list[int] | None:
    """Return the number of training images of each class of the data module's task; None if it does not say it."""
    support: Any = getattr(getattr(module.data_source, "task", None), "support", None)
    classes = len(module.class_prompts.class_names)
    if not isinstance(support, list) or len(support) != classes or not all(isinstance(each, list) for each in support):
        return None
    return [len(positions) for positions in support]


def _warn_of_imbalance(module: FewShotClassifier) -> None:
    counts = _counts(module)
    if counts is None or min(counts) == 0 or max(counts) < STRONG * min(counts):
        return
    names = module.class_prompts.class_names
    most, least = (names[counts.index(number)] for number in (max(counts), min(counts)))
    weights = "--model.class_weights balanced, or " if module.tuner.takes_class_weights else ""
    module.objective.warn_once(
        "imbalance",
        f"strongly imbalanced classes: '{most}' has {max(counts):,} training images, '{least}' {min(counts):,}. If "
        f"small classes matter as much as large ones, give {weights}--data.balanced_batches true with "
        "--data.batch_size. Balanced accuracy shows the effect.",
    )
