"""The numbers that are logged of an episode and of all episodes so far, and which way each of them is better."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from ..claims import MEASURES
from ..measured import TESTED, ZERO_SHOT, is_measure, measure_of, row_measures
from ..run_folder import Row
from ..statistics import CORRECTED
from ..summary import SHOWN, summarize, tested_images

AVERAGED = ("accuracy", "zero_shot_accuracy", *MEASURES)
# Other measures with a running mean and a paired difference; of all that a monitor takes, a run may have hundreds.
MEASURED = (*SHOWN, *(ZERO_SHOT + key for key in TESTED[1:]))
# Suffix of a running mean's number, and the field of `Interval` that it is.
PARTS = {
    "mean": "mean",
    "interval": "half_width",
    "low": "low",
    "high": "high",
    "episodes": "count",
    "images": "images",
}
ENDS = ("interval", "low", "high")  # named "corrected" where they are Nadeau and Bengio's
SHORT = ("mean", "interval", "episodes")  # parts of measures other than accuracies
GAPS = ("modality_gap", "centroid_gap", "distribution_gap", "relative_modality_gap")


class Numbers:
    """The metrics of a run.

    Args:
        methods: Names of the methods, the main one first.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self.methods = list(methods)

    def metrics(self, rows: Sequence[Row], episode: int) -> dict[str, float]:
        """Return the numbers of one episode, and the running means over the episodes up to it."""
        metrics: dict[str, float] = {"episode": episode}
        for row in rows:
            if row["episode"] == episode and row["method"] in self.methods:
                metrics |= {key + self.ending(row["method"]): value for key, value in _numbers(row).items()}
        for method in self.methods[1:]:
            for key in ("accuracy", *SHOWN):
                first, other = metrics.get(key), metrics.get(f"{key}/{method}")
                if first is not None and other is not None:
                    metrics[f"{_difference(key)}/{method}"] = first - other
        return metrics | self.means([row for row in rows if row["episode"] <= episode])

    def means(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return means over the rows with their 95% intervals, and what they rest on."""
        summary = summarize(rows, "", self.methods, episodes=sys.maxsize)
        found = []
        for name, method in summary["methods"].items():
            found += [(key, name, method.get(key), tuple(PARTS)) for key in AVERAGED]
            found += [(key, name, method.get(key), SHORT) for key in (*MEASURED, *filter(_is_gap, method))]
        for name, differences in summary["measure_differences"].items():
            found += [(_difference(key), name, differences.get(key), tuple(PARTS)) for key in ("accuracy", *SHOWN)]
        means: dict[str, float] = {}
        for key, name, interval, parts in found:
            for part in parts if interval is not None else ():
                value = interval[PARTS[part]]
                if value is not None and not (part == "interval" and value == 0):  # 0 of identical values: no interval
                    corrected = part in ENDS and interval["kind"] == CORRECTED
                    means[f"{key}_{'corrected_' * corrected}{part}{self.ending(name)}"] = value
        for name, method in summary["methods"].items():
            for key in ("diverged", "untested_classes"):
                if method[key]:
                    means[f"{key}{self.ending(name)}"] = len(method[key])
        return means

    def ending(self, method: str) -> str:
        """Return what the names of a method's numbers end with: nothing for the main method, else `/NAME`."""
        return "" if method == self.methods[0] else f"/{method}"


def goal_of(name: str) -> str | None:
    """Return "maximize" or "minimize" for a metric that is better so, None for the others.

    The goal of a mean is that of its measure; interval and counts have none, a difference of methods is not ranked.
    """
    key = name.partition("/")[0].removesuffix("_mean")
    if not (is_measure(key) or key in AVERAGED):
        return None
    better = measure_of(key).better
    return None if better is None else {"higher": "maximize", "lower": "minimize"}[better]


def is_summary(name: str) -> bool:
    """Return whether a metric is one of all episodes so far, whose last value sums up the run."""
    key = name.partition("/")[0]
    return key in ("diverged", "untested_classes") or (key.rpartition("_")[2] in PARTS and key != "test_images")


def _is_gap(name: str) -> bool:
    return name.rpartition(".")[2] in GAPS


def _difference(key: str) -> str:
    return "difference" if key == "accuracy" else f"{key}_difference"


def _numbers(row: Row) -> Mapping[str, float]:
    # MLflow takes no "@" in a name.
    numbers = {name.replace("@", "_"): value for name, value in row_measures(row).items()}
    if row.get("seconds") is not None:
        numbers["seconds"] = row["seconds"]
    images = tested_images(row)
    if "accuracy" in numbers and images is not None:
        numbers["test_images"] = images
    for moment, terms in (row.get("losses") or {}).items():
        numbers |= {f"{name}_{moment}": value for name, value in (terms or {}).items() if value is not None}
    return numbers
