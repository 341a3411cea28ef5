"""The numbers of a row that come from the test images of one episode."""

from __future__ import annotations

from ..lightning_modules import FewShotClassifier
from ..lightning_modules.evaluation_metrics import balanced_metrics
from .measured import TESTED, ZERO_SHOT
from .run_folder import Row
from .statistics import binomial_interval

NOTHING_TESTED: Row = {
    **{ZERO_SHOT + key: None for key in TESTED},
    **dict.fromkeys(TESTED),
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
        **module.confidence.measures(interval.images or 0),
        **balanced_metrics(counts),
        **({} if auroc is None else {"auroc": auroc}),
        "per_class": {
            name: 100.0 * int(r) / int(n) for name, r, n in zip(class_names, right, images, strict=True) if int(n) > 0
        },
        "confusion": counts.tolist(),
    }


def measure_zero_shot(module: FewShotClassifier) -> Row:
    """Return what a row says of the module's last test, one without the tuner."""
    counts = module.confusion.compute().cpu()
    right, images = int(counts.diag().sum()), int(counts.sum())
    measures = {"accuracy": 100.0 * right / images, **module.confidence.measures(images)}
    return {ZERO_SHOT + key: value for key, value in measures.items()}
