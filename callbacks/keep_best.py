"""The callback that keeps the tuner of the best validation."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..errors import DtrapError


class KeepBest(Callback):
    """Ends the training with the tuner's state of the validation with the highest "val/accuracy".

    Tip-Adapter-F and LP++ choose so in their authors' code, the former on its test set. Without a validation loader
    nothing is chosen.

    Args:
        ties: Which of equal validations counts: the "first" or the "last".

    Attributes:
        best: Number of the chosen validation, from 0; None before the first one.
        accuracies: Accuracy in percent of every validation.

    Raises:
        DtrapError: `ties` is none of those, or the module has no tuner.
    """

    def __init__(self, ties: Literal["first", "last"] = "first") -> None:
        if ties not in ("first", "last"):
            raise DtrapError(f"KeepBest: ties is {ties!r}; expected 'first' or 'last'.")
        self.ties = ties
        self.best: int | None = None
        self.accuracies: list[float] = []
        self._state: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew with every fit."""
        _tuner(pl_module)
        if stage == "fit":
            self.best, self.accuracies, self._state = None, [], {}

    def state_dict(self) -> dict[str, Any]:
        """What a run needs that is resumed from a checkpoint."""
        return {"best": self.best, "accuracies": self.accuracies, "state": self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was validated before the checkpoint."""
        self.best, self.accuracies, self._state = (state_dict[name] for name in ("best", "accuracies", "state"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a copy of the tuner's state where this is the best validation so far."""
        if trainer.sanity_checking or "val/accuracy" not in trainer.callback_metrics:
            return
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        highest = max(self.accuracies, default=float("-inf"))
        if accuracy > highest or (self.ties == "last" and accuracy == highest):
            self.best = len(self.accuracies)
            self._state = {name: value.detach().clone() for name, value in _tuner(pl_module).adapter_state().items()}
        self.accuracies.append(accuracy)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the best state."""
        if self._state:
            _tuner(pl_module).load_adapter_state(self._state)
            self._state = {}


def _tuner(module: LightningModule) -> Any:
    tuner = getattr(module, "tuner", None)
    if tuner is None:
        raise DtrapError(f"KeepBest: {type(module).__name__} has no tuner. Expected a FewShotClassifier.")
    return tuner
