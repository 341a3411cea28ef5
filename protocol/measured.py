"""What a result row measures: one flat name for each number, and how it is titled and written."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

QUERY, SUPPORT, COST = "query", "support", "cost"
START, SWITCH, END = "start", "switch", "end"
ZERO_SHOT = "zero_shot_"


@dataclass(frozen=True)
class Measure:
    """How a measure is written.

    Attributes:
        title: Name in tables and charts, such as "cross-entropy".
        unit: "%" or "nats"; "" for a number without a unit.
        digits: Decimal places of a mean.
        better: Which direction is better; None where neither is.
    """

    title: str
    unit: str = ""
    digits: int = 3
    better: Literal["higher", "lower"] | None = None

    @property
    def difference_unit(self) -> str:
        """Unit of a difference of two values: percentage points for percent."""
        return "points" if self.unit == "%" else self.unit

    @property
    def difference_digits(self) -> int:
        """Decimal places of a difference of two means."""
        return self.digits + 1 if self.unit == "%" else self.digits


# By key of a row, or of the row's `alignment`. The measures of features say how the model works, not how well.
MEASURES = {
    "accuracy": Measure("accuracy", "%", 1, "higher"),
    "cross_entropy": Measure("cross-entropy", "nats", 3, "lower"),
    "calibration_error": Measure("calibration error", "%", 1, "lower"),
    "balanced_accuracy": Measure("balanced accuracy", "%", 1, "higher"),
    "macro_f1": Measure("macro-F1", "%", 1, "higher"),
    "auroc": Measure("AUROC", "%", 1, "higher"),
    "gap_drop": Measure("loss(0) - least loss", "nats", 3, "lower"),
    "least_shift": Measure("shift of least loss"),
    "modality_gap": Measure("modality gap"),
    "centroid_gap": Measure("centroid gap"),
    "distribution_gap": Measure("distribution gap"),
    "relative_modality_gap": Measure("relative modality gap"),
    "alignment": Measure("alignment", better="lower"),
    "uniformity": Measure("uniformity", better="lower"),
    "scatter_ratio": Measure("scatter ratio"),
    "nearest_prototype_accuracy": Measure("nearest-prototype accuracy"),
    "relation_rank_correlation": Measure("rank correlation of relations", better="higher"),
    "relation_divergence": Measure("divergence of relations", better="lower"),
    "fitted_scale": Measure("fitted scale", digits=1),
    "fitted_cross_entropy": Measure("cross-entropy, fitted scale", "nats", 3, "lower"),
    "fitted_gap_drop": Measure("loss(0) - least loss, fitted scale", "nats", 3, "lower"),
    "parameters": Measure("parameters", digits=0),
    "trained_parameters": Measure("trained parameters", digits=0),
    "gflops": Measure("GFLOPs of a step"),
    "gflops_without": Measure("GFLOPs of a step without L_ad and L_ra"),
    "flops_added": Measure("FLOPs that L_ad and L_ra add, percent", digits=6),
    "step_ms": Measure("milliseconds of a step", digits=1),
    "step_ms_without": Measure("milliseconds of a step without L_ad and L_ra", digits=1),
    "step_ratio": Measure("time of a step, times one without L_ad and L_ra"),
}
# Keys of a row that are measured with and without the tuner.
TESTED = ("accuracy", "cross_entropy", "calibration_error")
OF_ROW = (*TESTED, "balanced_accuracy", "macro_f1", "auroc")
IMAGES = {QUERY: "queries", SUPPORT: "support", COST: ""}
MOMENTS = {START: "at the start", SWITCH: "at the switch", END: ""}


def measure_of(name: str) -> Measure:
    """Return how a flat name of `row_measures` is written; an unknown name is its own title.

    "query.gap_drop@start" has the title "loss(0) - least loss, queries, at the start".
    """
    images, _, rest = name.rpartition(".")
    key, _, moment = rest.partition("@")
    zero_shot = key.startswith(ZERO_SHOT)
    found = MEASURES.get(key.removeprefix(ZERO_SHOT), Measure(key))
    title = f"zero-shot {found.title}" if zero_shot and found.title != key else found.title
    parts = [title, IMAGES.get(images, images), MOMENTS.get(moment, f"at step {moment}") if moment else ""]
    return replace(found, title=", ".join(part for part in parts if part))


def is_measure(name: str) -> bool:
    """Return whether a row can have a measure of this flat name."""
    images, _, rest = name.rpartition(".")
    key, at, _ = rest.partition("@")
    if images:
        return images in IMAGES and key in MEASURES
    return key == "accuracy" if at else key in (*OF_ROW, *(ZERO_SHOT + tested for tested in TESTED))


def row_measures(row: Mapping[str, Any]) -> dict[str, float]:
    """Return all finite measures of a row by flat name.

    The names are "accuracy", "zero_shot_accuracy", "cross_entropy" and the like. A measure of `AlignmentMonitor` is
    "query.NAME" or "support.NAME" at the end of the training, "query.NAME@start" and "query.NAME@switch" before. An
    accuracy during the training is "accuracy@STEP", a number of `CostMonitor` "cost.NAME". What a row of an earlier
    version lacks has no name here.
    """
    found = {key: row.get(key) for key in (*OF_ROW, *(ZERO_SHOT + key for key in TESTED))}
    for entry in row.get("alignment") or []:
        moment = entry.get("moment")
        if moment in MOMENTS:
            ending = "" if moment == END else f"@{moment}"
            for images in (QUERY, SUPPORT):
                values = entry.get(images) or {}
                found |= {f"{images}.{key}{ending}": value for key, value in values.items()}
    during = row.get("accuracy_at") or {}
    for step, value in zip(during.get("step") or [], during.get("accuracy") or [], strict=False):
        found[f"accuracy@{step}"] = value
    found |= {f"{COST}.{key}": value for key, value in (row.get("cost") or {}).items()}
    return {name: float(value) for name, value in found.items() if value is not None and _is_number(value)}


def measured_values(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Return the values of rows of one method by flat name and episode; diverged episodes are left out."""
    values: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if not row.get("diverged"):
            for name, value in row_measures(row).items():
                values[name][row["episode"]] = value
    return dict(values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
