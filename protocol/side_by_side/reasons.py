"""Why a method runs its episodes one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ...callbacks import AlignmentMonitor, StageSwitch
from ...callbacks.switch_rules import RULES
from ...datamodules.few_shot import FewShotDataModule
from ...lightning_modules import FewShotClassifier
from ...lightning_modules.optimization import make_optimizer
from ...lightning_modules.tuners.lpp import BlockDescent

# Optimizers that treat every number of a parameter alike, so that stacked parameters do not mix.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    BlockDescent,
)


def reason_alone(
    module: FewShotClassifier, data: FewShotDataModule, arguments: Mapping[str, Any], switch: StageSwitch
) -> str | None:
    """Return why episodes of a method cannot be trained in one batch; None if they can."""
    return _of_data(data) or _of_trainer(arguments, switch) or _of_module(module, arguments)


def _of_data(data: FewShotDataModule) -> str | None:
    if data.streams:
        return "the all-way protocol has tasks of many steps with other images in each"
    if data.tasks == 1:
        return "there is one task"
    if not data.full_batch:
        return "it trains in mini-batches (--data.batch_size)"
    if data.validates:
        return "it validates while it trains (--data.validation_shots)"
    if not data.fixed_numbers:
        return "its episodes may have different numbers of images"
    if type(data).train_dataloader is not FewShotDataModule.train_dataloader:
        return f"{type(data).__name__} has a training loader of its own"
    return None


def _of_trainer(arguments: Mapping[str, Any], switch: StageSwitch) -> str | None:
    given = arguments.get("callbacks") or []
    others = [each for each in (given if isinstance(given, list) else [given]) if type(each) is not AlignmentMonitor]
    if others:
        return f"the callback {type(others[0]).__name__} follows one episode"
    if switch.rule in RULES:
        return f"--stage_switch.rule {switch.rule} ends the stage of each episode at another step"
    if arguments.get("gradient_clip_val") is not None and arguments.get("gradient_clip_algorithm") != "value":
        return "gradients are clipped by the norm of one episode (--trainer.gradient_clip_val)"
    return None


def _of_module(module: FewShotClassifier, arguments: Mapping[str, Any]) -> str | None:
    tuner = module.tuner
    if type(module) is not FewShotClassifier:
        return f"{type(module).__name__} is a module of its own"
    if not tuner.side_by_side:
        return f"the tuner {tuner.name} cannot train several episodes in one step"
    if module.class_weights is not None:
        return "each episode has class weights of its own (--model.class_weights)"
    if tuner.trains_itself or tuner.transductive:
        return f"the tuner {tuner.name} makes steps of its own"
    parameters = tuner.trained_parameters()
    if not parameters:
        return f"the tuner {tuner.name} trains nothing"
    optimizer = make_optimizer(module, parameters)
    if type(optimizer) not in ELEMENTWISE:
        return f"the optimizer {type(optimizer).__name__} may mix the episodes"
    if str(arguments.get("precision")).startswith("16") and any(isinstance(m, _BatchNorm) for m in tuner.modules()):
        return f"the tuner {tuner.name} has batch norms, whose step a loss scale cannot repeat for several episodes"
    return None
