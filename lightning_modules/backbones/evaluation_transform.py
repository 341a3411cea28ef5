"""The evaluation transform that open_clip's weights were published with."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from .base import checked_statistics


def evaluation_transform(
    name: str, published: dict[str, Any] | None, tags: list[dict[str, Any]], own: dict[str, Any]
) -> dict[str, Any]:
    """Return mean, std, resize_mode and interpolation of the weights; for a file, what all published weights share.

    Args:
        name: The model's name.
        published: open_clip's entry for the weights, None for your own file.
        tags: All entries of the model.
        own: `preprocess_cfg` of a JSON config.
    """
    sources = [published] if published else tags
    if any((source["mean"], source["std"]) != (sources[0]["mean"], sources[0]["std"]) for source in sources):
        warnings.warn(
            f"Published weights of {name} differ in image mean and std; CLIP's are used. Use a JSON "
            "config with preprocess_cfg.mean and .std to set others.",
            stacklevel=4,
        )
        sources = []
    shared = dict(sources[0]) if sources else {}
    resizing = ("resize_mode", "interpolation")
    if any([source[key] for key in resizing] != [shared[key] for key in resizing] for source in sources):
        shared = {key: value for key, value in shared.items() if key not in resizing}  # open_clip's own default
    merged = merge_preprocess_dict({**asdict(PreprocessCfg()), **shared}, own)
    merged["mean"], merged["std"] = checked_statistics(merged["mean"], merged["std"], name)
    return merged
