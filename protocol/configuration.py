"""From the command line and its configs to the objects of a run."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import (
    LRSchedulerCallable,
    OptimizerCallable,
)

from ..datamodules.few_shot import FewShotDataModule
from ..lightning_modules import FewShotClassifier, Objective
from ..lightning_modules.backbones import Backbone
from ..lightning_modules.tuners import Tuner
from .settings import ProtocolSettings


@dataclass
class MethodConfig:
    """One method of a run: its name, and its config as parsed and as plain values."""

    name: str
    parsed: Namespace
    plain: dict[str, Any]

    @property
    def settings(self) -> ProtocolSettings:
        """The protocol section."""
        return ProtocolSettings(**self.parsed.protocol)

    @property
    def backbone(self) -> str:
        """The backbone's name and weights as the config says them, before it is loaded."""
        backbone = self.parsed.model.backbone
        settings = backbone.get("init_args", Namespace())
        name, weights = settings.get("name"), settings.get("pretrained")
        if name is None:
            return backbone.class_path.rpartition(".")[2]
        stems = [Path(str(part)).stem if _is_file_name(part) else str(part) for part in (name, weights) if part]
        return "/".join(dict.fromkeys(stems))

    @property
    def tuner(self) -> str:
        """Name of the tuner's class."""
        return self.parsed.model.tuner.class_path.rpartition(".")[2]


def build_part(annotation: Any, value: Any) -> Any:
    """Instantiate one value of a parsed config as the type `annotation` says."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=annotation)
    return _instantiate(parser, Namespace(part=copy.deepcopy(value))).part


def _instantiate(parser: ArgumentParser, config: Namespace) -> Any:
    # jsonargparse called the method `instantiate_classes` until 4.48 and warns of that name since.
    return (parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes)(config)


def build_data(config: Namespace) -> FewShotDataModule:
    """The data module of a parsed config."""
    return build_part(FewShotDataModule, config.data)


def build_trainer_arguments(config: Namespace) -> dict[str, Any]:
    """The Trainer's arguments, its callbacks and loggers instantiated."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, fail_untyped=False)
    return dict(vars(_instantiate(parser, Namespace(trainer=config.trainer.clone())).trainer))


def build_module(config: Namespace, shared: FewShotClassifier | None = None) -> FewShotClassifier:
    """The module of a parsed config.

    Args:
        config: The parsed config.
        shared: A module of the same backbone and tuner settings, whose backbone and tuner are used again.
    """
    model = config.model.clone()
    if shared is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a backbone without weights is the same one where a run goes on
            backbone = build_part(Backbone, model.backbone)
        tuner = build_part(Tuner, model.tuner)
    else:
        backbone, tuner = shared.backbone, shared.tuner
    module = FewShotClassifier(
        backbone=backbone,
        tuner=tuner,
        objective=build_part(Objective, model.objective),
        template=model.template,
        learning_rate=model.learning_rate,
        optimizer=build_part(OptimizerCallable | None, model.optimizer),
        lr_scheduler=build_part(LRSchedulerCallable | None, model.lr_scheduler),
        image_chunk=model.image_chunk,
        plain_views=model.plain_views,
        start_seed=model.start_seed,
        text_chunk=model.text_chunk,
        descriptions=model.descriptions,
        final_rate=model.final_rate,
    )
    if shared is not None:
        module.share_frozen(shared)
    return module


def _is_file_name(value: object) -> bool:
    return Path(str(value)).suffix in (".json", ".safetensors", ".pt", ".pth", ".bin")
