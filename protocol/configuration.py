"""Objects of a run from a parsed config."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer

from ..callbacks import StageSwitch
from ..datamodules.few_shot import FewShotDataModule
from ..lightning_modules import FewShotClassifier, Objective
from ..lightning_modules.backbones import Backbone
from ..lightning_modules.tuners import Tuner
from .explanation import explained_creation
from .logger_places import place_loggers
from .settings import ProtocolSettings

OPTIONS = {Backbone: "model.backbone", Tuner: "model.tuner", Objective: "model.objective", FewShotDataModule: "data"}
FILE_ENDINGS = (".json", ".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Reference:
    """What the shipped configs of a command line set, without the user's own.

    Attributes:
        values: Their merged content.
        overlays: Names of those in folders, such as `tuners/coop.yaml`, that change a result.
    """

    values: dict[str, Any]
    overlays: list[str]


@dataclass
class MethodConfig:
    """One method of a run, from a parsed config.

    Attributes:
        name: Name in rows, tables and file names.
        parsed: The parsed config.
        values: The same config as values of JSON and YAML.
        explicit: Whether the user gave the name; otherwise it follows from the settings.
        old_name: Name that the method of an overlay had in run folders until names followed from the settings.
        default_precision: Whether `trainer.precision` was null, so that the device decides.
        reference: What the shipped configs of the command line set; None if unknown.
    """

    name: str
    parsed: Namespace
    values: dict[str, Any]
    explicit: bool = False
    old_name: str | None = None
    default_precision: bool = False
    reference: Reference | None = None

    @property
    def settings(self) -> ProtocolSettings:
        """The section `protocol`."""
        return ProtocolSettings(**self.parsed.protocol)

    @property
    def backbone(self) -> str:
        """Name and weights of the backbone as the config gives them; nothing is loaded."""
        backbone = self.parsed.model.backbone
        settings = backbone.get("init_args", Namespace())
        name, weights = settings.get("name"), settings.get("pretrained")
        if name is None:
            return backbone.class_path.rpartition(".")[2]
        parts = [str(part) for part in (name, weights) if part]
        return "/".join(dict.fromkeys(Path(part).stem if part.endswith(FILE_ENDINGS) else part for part in parts))

    @property
    def tuner(self) -> str:
        """Name of the tuner's class."""
        return self.parsed.model.tuner.class_path.rpartition(".")[2]

    @cached_property
    def own_tuner(self) -> Tuner:
        """The tuner, attached to nothing."""
        return build_part(Tuner, self.parsed.model.tuner)

    @property
    def tuner_name(self) -> str:
        """The tuner's own name, for file names and tags."""
        return self.own_tuner.name

    def trainer_arguments(self, *, logger: bool = True, folder: Path | None = None) -> dict[str, Any]:
        """Return the Trainer's arguments with callbacks and, if wanted, loggers, which write into `folder`."""
        return build_trainer_arguments(self.parsed, logger=logger, folder=folder)

    def set_precision(self, precision: str) -> None:
        """Write a precision into the config."""
        self.values["trainer"]["precision"] = self.parsed.trainer.precision = precision

    def stage_switch(self) -> StageSwitch:
        """Return the callback of the stage of SVL and RA."""
        with explained_creation("stage_switch", self.parsed.stage_switch):
            return StageSwitch(**self.parsed.stage_switch)

    @property
    def shared_parts(self) -> list[Any]:
        """Settings of backbone and tuner; methods with equal ones share both."""
        return [self.values["model"][part] for part in ("backbone", "tuner")]

    def losses_and_tuner(self) -> tuple[Objective, Tuner]:
        """Return objective and tuner without the backbone."""
        return build_part(Objective, self.parsed.model.objective), build_part(Tuner, self.parsed.model.tuner)

    def build(self, shared: HasParts | None = None) -> FewShotClassifier:
        """Return the module; see `build_module`."""
        return build_module(self.parsed, shared)


def build_part(annotation: Any, value: Any) -> Any:
    """Instantiate one value of a parsed config as the type `annotation` says.

    Raises:
        DtrapError: The class refuses its arguments.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=annotation)
    return _instantiate(parser, Namespace(part=copy.deepcopy(value)), OPTIONS.get(annotation, "config")).part


def _instantiate(parser: ArgumentParser, config: Namespace, option: str) -> Any:
    # jsonargparse called the method `instantiate_classes` until 4.48 and warns of that name since.
    instantiate = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    with explained_creation(option, next(iter(vars(config).values()))):
        return instantiate(config)


def build_data(config: Namespace) -> FewShotDataModule:
    """Return the data module of a parsed config."""
    return build_part(FewShotDataModule, config.data)


def build_trainer_arguments(config: Namespace, *, logger: bool = True, folder: Path | None = None) -> dict[str, Any]:
    """Return the Trainer's arguments with callbacks and, if wanted, loggers instantiated.

    Args:
        config: The parsed config.
        logger: Whether loggers are wanted.
        folder: Run folder, where loggers without a place of their own write; None for the current folder.
    """
    trainer = config.trainer.clone()
    if not logger:
        trainer.logger = False
    elif folder is not None:
        place_loggers(trainer, folder)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, fail_untyped=False)
    return dict(vars(_instantiate(parser, Namespace(trainer=trainer), "trainer").trainer))


class HasParts(Protocol):
    """A backbone and the tuner that is attached to it, such as a module has them."""

    backbone: Any
    tuner: Any


def build_module(config: Namespace, shared: HasParts | None = None) -> FewShotClassifier:
    """Return the module of a parsed config.

    Args:
        config: The parsed config.
        shared: Backbone and tuner of the same settings, which are used.
    """
    model = config.model.clone()
    if shared is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a backbone without weights must be the same when a run is resumed
            model.backbone = build_part(Backbone, model.backbone)
    else:
        model.backbone, model.tuner = shared.backbone, shared.tuner
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FewShotClassifier, "model")
    return _instantiate(parser, Namespace(model=model), "model").model
