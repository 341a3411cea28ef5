"""The numbers of a row that come from the test images of one episode."""

from __future__ import annotations

from torch import Tensor

from ..lightning_modules import FewShotClassifier
from ..lightning_modules.evaluation_metrics import balanced_metrics
from .run_folder import Row
from .statistics import binomial_interval

NOTHING_TESTED: Row = {
    "zero_shot_accuracy": None,
    "accuracy": None,
    "test_images": 0,
    "per_class": None,
    "confusion": None,
}


def measure(module: FewShotClassifier, class_names: list[str]) -> Row:
    """Return what a row says of the module's last test; see `ResultRows`."""
    # The confusion has room for two classes at least, also where the task has one.
    counts = module.confusion.compute().cpu()[: len(class_names), : len(class_names)]
    right, images = counts.diag(), counts.sum(dim=1)
    interval = binomial_interval(int(right.sum()), int(images.sum()))
    auroc = module.ranking.auroc
    return {
        "accuracy": interval.mean,
        "test_images": interval.images,
        "binomial_interval": [interval.low, interval.high],
        **balanced_metrics(counts),
        **({} if auroc is None else {"auroc": auroc}),
        "per_class": {
            name: 100.0 * int(r) / int(n) for name, r, n in zip(class_names, right, images, strict=True) if int(n) > 0
        },
        "confusion": counts.tolist(),
    }


def share(confusion: Tensor) -> float:
    """Return the accuracy in percent of counts [W, W]."""
    return 100.0 * int(confusion.diag().sum()) / int(confusion.sum())
