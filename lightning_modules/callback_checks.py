"""Callbacks and tools of a Trainer that cannot work with a module or its data, found before the first step."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from lightning.pytorch.callbacks import LearningRateFinder

from ..errors import DtrapError
from .evaluation_metrics import LOGGED


def warn_of_old_lightning() -> None:
    """Warn where the package pytorch_lightning is in use: its Trainer refuses a module without saying why."""
    if "pytorch_lightning" in sys.modules:
        warnings.warn(
            "pytorch_lightning is imported, whose Trainer does not take dtrap's modules: write `from lightning.pytorch "
            "import Trainer`. The losses, Objective and StageSwitch work with both.",
            stacklevel=3,
        )


def check_callbacks(module: Any, trainer: Any, datamodule: Any) -> None:
    """Raise a DtrapError if a callback cannot do its work in a fit.

    Args:
        module: The FewShotClassifier.
        trainer: Its Trainer.
        datamodule: Its data module, if it has one.
    """
    _check_monitors(trainer, datamodule)
    if module.own_optimizer is not None:
        refuse_rate_finder(
            trainer, "the given optimizer has a rate of its own. Leave model.optimizer out while a rate is looked for"
        )
    if module.tuner.trains_itself:
        refuse_rate_finder(
            trainer, f"the tuner {module.tuner.name} makes steps of its own. Set model.learning_rate by hand"
        )


def refuse_rate_finder(trainer: Any, reason: str) -> None:
    """Raise a DtrapError with a reason if a Trainer looks for a learning rate."""
    if any(isinstance(callback, LearningRateFinder) for callback in getattr(trainer, "callbacks", ())):
        raise DtrapError(f"LearningRateFinder: there is no learning rate to find: {reason}.")


def _check_monitors(trainer: Any, datamodule: Any) -> None:
    """Raise a DtrapError if a callback needs a number of the validation, and a data module of dtrap has none.

    Lightning itself says so at the end of the first epoch only, and not how to ask for it.
    """
    if getattr(datamodule, "validates", None) is not False:
        return
    for callback in getattr(trainer, "callbacks", ()):
        monitored = getattr(callback, "monitor", None)
        stage, _, name = str(monitored).partition("/")
        if stage == "val" and name.partition("/")[0] in LOGGED and getattr(callback, "strict", True):
            option = getattr(getattr(datamodule, "sampler", None), "validation_option", "a validation loader")
            raise DtrapError(
                f"{type(callback).__name__} monitors {monitored}, but no validation is asked for. Give {option}, or "
                "remove the callback."
            )
