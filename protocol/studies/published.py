"""The paper's published numbers, to stand next to measured ones (arXiv 2603.13341)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

PAPER = "Mind the Discriminability Trap in Source-Free Cross-domain Few-shot Learning, arXiv 2603.13341"
MEAN = "mean"
PAPER_SETS = {"isic", "eurosat", "crop_disease", "chestx"}

# Backbone, shot and arm; then by set.
Key = tuple[str, int, str]


@dataclass(frozen=True)
class PublishedTable:
    """One table of the paper.

    Attributes:
        title: What the paper calls it, and for which method.
        measure: The flat name of the measure that it stands next to.
        values: By (backbone, shot, arm) the number of each set, and the mean over the four sets as "mean" where the
            paper gives one.
        note: What a reader has to know before comparing.
        label: What the numbers are called where they stand next to measured ones.
    """

    title: str
    measure: str
    values: Mapping[Key, Mapping[str, float]]
    note: str
    label: str = "published"


def _row(names: str, *values: float) -> dict[str, float]:
    return dict(zip(names.split(), values, strict=True))


_MAIN = "isic eurosat crop_disease chestx mean"
_ABLATION = "crop_disease eurosat isic chestx mean"
_GAP = "crop_disease eurosat isic chestx"

PUBLISHED = {
    "main": PublishedTable(
        "LoRA on the image tower, 5-way; of 5-shot the paper's mean for PE-Core alone",
        "accuracy",
        {
            ("clip", 1, "plain"): _row(_MAIN, 36.40, 81.72, 84.62, 21.86, 56.07),
            ("clip", 1, "both"): _row(_MAIN, 38.12, 85.02, 87.20, 22.68, 58.26),
            ("pe_core", 1, "plain"): _row(_MAIN, 40.89, 84.49, 91.75, 22.02, 59.78),
            ("pe_core", 1, "both"): _row(_MAIN, 45.01, 86.83, 93.03, 23.66, 62.14),
            ("pe_core", 5, "plain"): {MEAN: 68.64},
            ("pe_core", 5, "both"): {MEAN: 70.29},
        },
        "The authors' plain fine-tuning is another recipe: fewer steps, in mini-batches.",
    ),
    "ablation": PublishedTable(
        "ablation, CLIP, 5-way 1-shot",
        "accuracy",
        {
            ("clip", 1, "plain"): _row(_ABLATION, 84.6, 81.7, 36.4, 21.8, 56.07),
            ("clip", 1, "svl"): _row(_ABLATION, 86.4, 83.8, 37.6, 22.4, 57.55),
            ("clip", 1, "ra"): _row(_ABLATION, 85.9, 83.2, 37.4, 22.2, 57.17),
            ("clip", 1, "both"): _row(_ABLATION, 87.2, 85.0, 38.1, 22.7, 58.26),
        },
        "The authors' plain fine-tuning is another recipe: fewer steps, in mini-batches.",
    ),
    "trap": PublishedTable(
        "table of the gap, CLIP, 5-way 1-shot",
        "query.gap_drop",
        {
            ("clip", 1, "plain"): _row(_GAP, 0.014, 0.048, 0.406, 0.356),
            ("clip", 1, "visual"): _row(_GAP, 0.022, 0.072, 0.626, 0.742),
            ("clip", 1, "svl"): _row(_GAP, 0.012, 0.024, 0.191, 0.249),
            ("clip", 1, "both"): _row(_GAP, 0.009, 0.027, 0.171, 0.238),
        },
        'The paper does not define its "Gap": it stands next to loss(0) - least loss, whose size fits best, and may be '
        "another quantity.",
        'published "Gap"',
    ),
    "overhead": PublishedTable(
        "claimed overhead",
        "cost.flops_added",
        {},
        "It claims that SVL + RA add 0.0028 % parameters and 0.000021 % FLOPs, and does not say how they were counted.",
    ),
}


# What an arm of the paper is, as command line words; and options of cells that leave the paper's setting as it is.
PAPER_ARMS: dict[str, tuple[str, ...]] = {
    "plain": ("--config", "methods/baseline.yaml"),
    "svl": ("--config", "methods/svl.yaml"),
    "ra": ("--config", "methods/ra.yaml"),
    "visual": ("--config", "methods/visual.yaml"),
    "both": (),
}
_OTHER_SETTING = ("--config", "--model", "--stage_switch", "--data", *(f"--trainer.{name}_" for name in (
    "max", "min", "limit", "gradient", "accumulate")))  # fmt: skip
_SAME_SETTING = ("--data.root", "--data.num_workers")


def is_papers(words: Sequence[str], name: str) -> bool:
    """Return whether a value of an axis, or none, is the config that its name says, with nothing else set."""
    configs = [word for before, word in pairwise(words) if before == "--config"]
    rest = [word for word in words if word != "--config"]
    named = [PurePosixPath(word).name for word in configs] == [PurePosixPath(name).name]
    return not words or (named and keeps_setting(rest))


def keeps_setting(words: Iterable[str]) -> bool:
    """Return whether options leave data, model and length of training as the configs have them."""
    return not any(word.startswith(_OTHER_SETTING) and not word.startswith(_SAME_SETTING) for word in words)


def published_values(key: str | None, arm: str, measure: str, axes: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the published numbers of an arm by set, with "mean"; empty where the paper has none for this setting.

    Args:
        key: Key of `PUBLISHED`; None for none.
        arm: Name of the arm.
        measure: Flat name of the measure.
        axes: The other axes of a study's cell. A number is published for LoRA on the image tower and the paper's
            weights of the losses alone, so that a cell of another tuner or of a grid has none.
    """
    table = PUBLISHED.get(key or "")
    if table is None or measure != table.measure or axes.keys() - {"sets", "backbones", "tuners", "shots", "seeds"}:
        return {}
    tuner = _stem(axes.get("tuners"), "lora")
    shot = axes.get("shots", shot_of(axes.get("sets")))
    return table.values.get((_stem(axes.get("backbones"), "clip"), shot, arm), {}) if tuner == "lora" else {}


def set_key(config: object) -> str:
    """Return the name of a set in the tables: "isic" of `isic_1shot.yaml`."""
    name = PurePosixPath(str(config)).name.removesuffix(".yaml")
    return name.rpartition("_")[0] if name.endswith("shot") else name


def shot_of(config: object) -> int | None:
    """Return the shots that the name of a config says: 1 of `isic_1shot.yaml`."""
    number = PurePosixPath(str(config)).name.removesuffix(".yaml").rpartition("_")[2].removesuffix("shot")
    return int(number) if number.isdecimal() else None


def _stem(value: object, default: str) -> str:
    if value is None or value == [] or value == "default":  # no overlay
        return default
    return PurePosixPath(str(value)).name.removesuffix(".yaml")
