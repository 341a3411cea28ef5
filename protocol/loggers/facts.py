"""The settings by which runs are compared, as flat names with resolved values; nothing is null."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ... import __version__
from ...datamodules.few_shot import FewShotDataModule
from ..folder_identity import Method
from ..method_names import effective_settings

# Distributions that decide numbers, with the name of their version.
LIBRARIES = {
    "torch": "torch_version",
    "torchvision": "torchvision_version",
    "lightning": "lightning_version",
    "open_clip_torch": "open_clip_version",
    "transformers": "transformers_version",
    "timm": "timm_version",
    "peft": "peft_version",
    "numpy": "numpy_version",
}
ALL = "all"  # of a class's images, or of the classes


def run_facts(methods: Sequence[Method], data: FewShotDataModule, episodes: int) -> dict[str, Any]:
    """Return the flat settings of a run.

    Those of the main method have plain names: dataset, way, shot, backbone, weights, tuner and the tuner's own options
    (rank), method, seed, lambda, beta, learning_rate, epochs, steps and others. A setting of another method that
    differs has the ending `/NAME`, as its numbers have. What a method does not have, such as the rank of a tuner
    without one, has no name.

    Args:
        methods: The methods, the main one first.
        data: The data module, set up.
        episodes: Number of episodes.
    """
    facts: dict[str, Any] = {**_of_data(data), "episodes": episodes, **versions()}
    main = method_facts(methods[0], data)
    for method in methods[1:]:
        other = {name: value for name, value in method_facts(method, data).items() if name != "method"}
        facts |= {f"{name}/{method.name}": value for name, value in other.items() if main.get(name) != value}
    return {name: value for name, value in (main | facts).items() if value is not None}


def versions() -> dict[str, str]:
    """Return the versions of dtrap, Python and the libraries that decide numbers, and the device's name."""
    found = {"dtrap_version": __version__, "python_version": platform.python_version()}
    for name, key in LIBRARIES.items():
        with suppress(PackageNotFoundError):
            found[key] = version(name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {**found, "device": device}


def _of_data(data: FewShotDataModule) -> dict[str, Any]:
    episodic = data.tasks is None
    classes = len(data.index.class_names)
    return {
        "dataset": data.title,
        "task": data.protocol,
        "classes": classes,
        "way": data.way if episodic else classes,
        "shot": data.shot if data.fixed_numbers else ALL,
        "query": data.query_shot if episodic and data.has_query else None,
        "views": data.views,
        "seed": data.seed,
        "batch_size": data.batch_size,
        "template": data.template,
    }


def method_facts(method: Method, data: FewShotDataModule) -> dict[str, Any]:
    """Return the settings of one method without what is null."""
    settings = effective_settings(method.values, method.own_tuner, keep=True)
    model, trainer, stage = settings["model"], settings.get("trainer", {}), settings.get("stage_switch", {})
    objective = (model.get("objective") or {}).get("init_args", {})
    name, _, weights = method.backbone.rpartition("/")
    facts = {
        **_plain((model.get("tuner") or {}).get("init_args", {})),
        "backbone": name or weights,
        "weights": weights,
        "tuner": method.tuner_name,
        "method": method.name,
        "lambda": objective.get("anti_visual_weight"),
        "beta": objective.get("relation_weight"),
        "learning_rate": learning_rate(model),
        "epochs": trainer.get("max_epochs"),
        "steps": planned_steps(trainer, data),
        "precision": trainer.get("precision"),
        **_plain({key: objective.get(key) for key in ("visual_term", "relation_form", "relation_source")}),
        **{f"stage_{key}": str(value) for key, value in stage.items() if value is not None},
    }
    return {key: value for key, value in facts.items() if value is not None}


def learning_rate(model: Mapping[str, Any]) -> float | None:
    """Return the learning rate of a method's model: that of an optimizer of the user's own, if there is one."""
    optimizer = model.get("optimizer")
    if isinstance(optimizer, Mapping):
        return (optimizer.get("init_args") or {}).get("lr")
    return model.get("learning_rate")


def planned_steps(trainer: Mapping[str, Any], data: FewShotDataModule) -> int | None:
    """Return the number of training batches of a task; None where it is not known before."""
    limit, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    if isinstance(limit, int) and limit > 0:
        return limit
    try:
        each = data.steps_per_epoch
        if data.batch_size is not None and not data.streams:
            rows = data.way * data.shot * data.views / data.batch_size
            each = math.floor(rows) if data.drop_last else math.ceil(rows)
        return None if epochs is None or epochs < 1 else int(epochs * each)
    except (AttributeError, TypeError):  # a data module of somebody else's
        return None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a column of a table can hold."""
    return {key: value for key, value in values.items() if isinstance(value, str | int | float)}
