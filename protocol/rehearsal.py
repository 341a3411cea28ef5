"""The modules of a run, and what is tried before its first episode to find mistakes early."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..datamodules.few_shot import FewShotDataModule
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.backbones import Backbone
from ..lightning_modules.tuners import Tuner
from .configuration import MethodConfig
from .explanation import explained_creation
from .folder_identity import Method


@dataclass
class SharedParts:
    """A backbone and the tuner that is attached to it."""

    backbone: Backbone
    tuner: Tuner


# By the settings of both, see `parts_key`.
Loaded = dict[str, SharedParts]


def parts_key(method: MethodConfig) -> str:
    """Return a text that two methods have in common if they have the same backbone and tuner."""
    return json.dumps(method.shared_parts, sort_keys=True, default=str)


def build_modules(methods: Sequence[Method], loaded: Loaded | None = None) -> dict[str, FewShotClassifier]:
    """Return a module for each method, by name; methods with the same backbone and tuner share both.

    Args:
        methods: The methods.
        loaded: What earlier runs of this process have loaded; it is used, and what is loaded here is added.
    """
    modules: dict[str, FewShotClassifier] = {}
    for method in methods:
        first = next(other for other in methods if other.shared_parts == method.shared_parts)
        shared = modules.get(first.name)
        key = parts_key(method) if loaded is not None and isinstance(method, MethodConfig) else None
        known = loaded.get(key) if loaded is not None and key is not None else None
        modules[method.name] = module = method.build(known if shared is None else shared)
        if shared is not None:
            module.share_frozen(shared)
        if loaded is not None and key is not None:
            loaded[key] = SharedParts(module.backbone, module.tuner)
    return modules


def rehearse(module: FewShotClassifier, data: FewShotDataModule) -> None:
    """Find mistakes in the prompts of all classes and in the schedule, and prepare `describe_training`."""
    module.set_classes(data.index.class_names, data.template)
    module.set_classes(data.class_names, data.template, data_set=data.index.class_names)
    module.start_task(0)
    if module.tuner.own_prompts:
        with torch.no_grad():
            module.text_features()
    _try_schedule(module)


def _try_schedule(module: FewShotClassifier) -> None:
    """Create the given schedule as every episode does, for one number; the module has tried its optimizer."""
    if module.own_lr_scheduler is None:
        return
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    own = module.own_optimizer
    optimizer: Any = torch.optim.SGD(parameters, lr=1.0) if own is None else own(parameters)
    with explained_creation("model.lr_scheduler", None):
        module.own_lr_scheduler(optimizer)
