"""The modules of a run, and what is tried before its first episode to find mistakes early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..datamodules.few_shot import FewShotDataModule
from ..lightning_modules import FewShotClassifier
from .explanation import explained_creation
from .folder_identity import Method


def build_modules(methods: Sequence[Method]) -> dict[str, FewShotClassifier]:
    """Return a module for each method, by name; methods with the same backbone and tuner share both."""
    modules: dict[str, FewShotClassifier] = {}
    for method in methods:
        first = next(other for other in methods if other.shared_parts == method.shared_parts)
        shared = modules.get(first.name)
        modules[method.name] = method.build(shared)
        if shared is not None:
            modules[method.name].share_frozen(shared)
    return modules


def rehearse(module: FewShotClassifier, data: FewShotDataModule) -> None:
    """Find mistakes in the prompts of all classes and in the schedule, and prepare `describe_training`."""
    module.set_classes(data.index.class_names, data.template)
    module.set_classes(data.class_names, data.template)
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
