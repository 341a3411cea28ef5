"""A method of a run that is given as a module, and the settings that identify it."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from ..callbacks import StageSwitch
from ..configs import SHIPPED
from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError
from ..files import to_json_values
from ..lightning_modules import FewShotClassifier, Objective
from ..lightning_modules.backbones.base import Backbone
from ..lightning_modules.tuners import Tuner
from .configuration import HasParts
from .identity import NEUTRAL_DATA_OPTIONS
from .settings import check_method_name

# Attributes that hold an argument under another name than the argument's, which a property or method has.
ATTRIBUTES = {
    "all_way": "sampler.settings",
    "query": "query_shot",
    "optimizer": "own_optimizer",
    "lr_scheduler": "own_lr_scheduler",
}
# A run replaces the data module's preprocessing by the backbone's.
IGNORED_OF_DATA = NEUTRAL_DATA_OPTIONS | {"preprocessing"}


class ModuleMethod:
    """One method of a run, from a module that a caller's factory returns.

    Args:
        name: Name in rows, tables and file names.
        factory: Returns the module; called once.
        data: The data module.
        trainer: Arguments of the Trainer that differ from those of `dtrap fit`.
        switch: The stage of SVL and RA; its first 3/5 if None.

    Raises:
        DtrapError: The name is not usable, or the factory does not return a FewShotClassifier.
    """

    def __init__(
        self,
        name: str,
        factory: Callable[[], FewShotClassifier],
        data: FewShotDataModule,
        trainer: Mapping[str, Any] | None,
        switch: StageSwitch | None,
    ) -> None:
        check_method_name(name)
        module = factory()
        if not isinstance(module, FewShotClassifier):
            raise DtrapError(
                f"method '{name}': the factory returned {type(module).__name__}; expected a FewShotClassifier."
            )
        if module.tuner.transductive and not name.endswith("transductive"):
            raise DtrapError(
                f"method '{name}': the tuner {module.tuner.name} is transductive, so its results are not comparable "
                f"with others. Name the method '{name}-transductive'."
            )
        defaults = yaml.safe_load((SHIPPED / "defaults.yaml").read_text(encoding="utf-8"))["trainer"]
        self.name, self.module = name, module
        self.backbone, self.tuner = module.backbone.identifier, type(module.tuner).__name__
        self.own_tuner, self.old_name = module.tuner, None
        self.tuner_name = module.tuner.name  # the tuner's own name, for file names and tags
        self.shared_parts = [module.backbone, module.tuner]  # methods with the same ones share their frozen features
        self.trainer, self.switch = {**defaults, **(trainer or {})}, switch or StageSwitch()
        self.default_precision = False  # see `settle_precision`
        data.set_episode(0)  # in the all-way protocol, the module's seed is that of its episode
        # Settings that identify the method, as values of JSON.
        self.values = {
            "trainer": describe({key: value for key, value in self.trainer.items() if key != "logger"}),
            "model": describe(module),
            "data": describe(data),
            "stage_switch": describe(self.switch)["init_args"],
        }

    def trainer_arguments(self, *, logger: bool = True, folder: Path | None = None) -> dict[str, Any]:
        """Return the Trainer's arguments, without loggers if they are not wanted; given ones have their own folders."""
        return dict(self.trainer) if logger else {**self.trainer, "logger": False}

    def set_precision(self, precision: str) -> None:
        """Write a precision into the settings and the Trainer's arguments."""
        self.values["trainer"]["precision"] = self.trainer["precision"] = precision

    def stage_switch(self) -> StageSwitch:
        """Return the callback of the stage of SVL and RA."""
        return self.switch

    def losses_and_tuner(self) -> tuple[Objective, Tuner]:
        """Return objective and tuner of the module."""
        return self.module.objective, self.module.tuner

    def build(self, shared: HasParts | None = None) -> FewShotClassifier:
        """Return the module."""
        return self.module


def describe(value: Any) -> Any:
    """Describe a value by values of JSON, as far as it is known.

    Objects become `class_path` and `init_args`: the arguments of their constructor, including those passed on to base
    classes, as far as an attribute of the same name holds them. A backbone is described by its identifier, a tensor by
    a hash of its values, a function by its name and the arguments of `functools.partial`.
    """
    if value is None or isinstance(value, bool | int | float | str | Path):
        return to_json_values(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Tensor | np.ndarray):
        flat = torch.as_tensor(value).detach().cpu().contiguous().reshape(-1)
        digest = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
        return f"{flat.dtype} {list(value.shape)} {digest[:16]}"
    if isinstance(value, functools.partial):
        arguments = {**{str(number): item for number, item in enumerate(value.args)}, **value.keywords}
        return {"class_path": describe(value.func), "init_args": describe(arguments)}
    if inspect.isroutine(value) or inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}"
    arguments = {"identifier": value.identifier} if isinstance(value, Backbone) else _arguments(value)
    # Objects without stored arguments, such as a Fraction or a dtype. The default repr has an address, which changes.
    if not arguments and type(value).__repr__ is not object.__repr__:
        return repr(value)
    return {"class_path": describe(type(value)), "init_args": describe(arguments)}


def _arguments(value: Any) -> dict[str, Any]:
    """Arguments of an object's constructor that it keeps as attributes."""
    names: set[str] = set()
    for base in type(value).__mro__:
        with suppress(ValueError):  # written in C without a signature
            names.update(inspect.signature(base.__init__).parameters)  # type: ignore[misc]
    names -= {"self"}
    if isinstance(value, FewShotDataModule):
        names -= IGNORED_OF_DATA
    found: dict[str, Any] = {}
    for name in sorted(names):
        for attribute in (ATTRIBUTES.get(name, name), name):
            with suppress(AttributeError):
                found.setdefault(name, attrgetter(attribute)(value))
    return found
