"""A callback that keeps the tuner's state with the best validation accuracy."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..errors import DtrapError, check_one_of


class KeepBest(Callback):
    """Restore the tuner's state with the highest "val/accuracy" at the end of training.

    The authors' code of Tip-Adapter-F and LP++ does this; Tip-Adapter-F uses its test set. Without a validation loader
    this callback does nothing.

    Args:
        ties: The validation to keep among equal ones: the "first" or the "last".

    Attributes:
        best: Number of the best validation, from 0; None before the first one.
        accuracies: Accuracy in percent of every validation.

    Raises:
        DtrapError: `ties` is unknown, or the module has no tuner.
    """

    def __init__(self, ties: Literal["first", "last"] = "first") -> None:
        check_one_of("KeepBest: ties", ties, ("first", "last"))
        self.ties = ties
        self.best: int | None = None
        self.accuracies: list[float] = []
        self._state: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset at the start of a fit; Lightning's CLI shares callbacks between Trainers."""
        _tuner(pl_module)
        if stage == "fit":
            self.best, self.accuracies, self._state = None, [], {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for Lightning's checkpoints."""
        return {"best": self.best, "accuracies": self.accuracies, "state": self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.best, self.accuracies, self._state = (state_dict[name] for name in ("best", "accuracies", "state"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the tuner's state if this is the best validation so far."""
        fitting = trainer.state.fn == "fit"  # otherwise it is a validation of its own
        if trainer.sanity_checking or not fitting or "val/accuracy" not in trainer.callback_metrics:
            return
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        highest = max(self.accuracies, default=float("-inf"))
        if accuracy > highest or (self.ties == "last" and accuracy == highest):
            self.best = len(self.accuracies)
            self._state = {name: value.detach().clone() for name, value in _tuner(pl_module).adapter_state().items()}
        self.accuracies.append(accuracy)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the best state; warn if there is a validation, but it never ran."""
        if not self.accuracies and trainer.val_dataloaders:
            warnings.warn(
                "KeepBest: no validation ran in this training, so its last state is kept. Lower "
                "--trainer.check_val_every_n_epoch or --trainer.val_check_interval.",
                stacklevel=2,
            )
        if self._state:
            _tuner(pl_module).load_adapter_state(self._state)
            self._state = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore it if a fit was resumed from a checkpoint of its end: Lightning then skips the end of training."""
        self.on_train_end(trainer, pl_module)


def _tuner(module: LightningModule) -> Any:
    tuner = getattr(module, "tuner", None)
    if tuner is None:
        raise DtrapError(f"KeepBest: {type(module).__name__} has no attribute `tuner`; expected a FewShotClassifier.")
    return tuner
