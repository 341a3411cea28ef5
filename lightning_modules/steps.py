"""What the next training step depends on besides the tuner's values, for Lightning's checkpoints."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import DtrapError, first_line

if TYPE_CHECKING:
    from .few_shot_classifier import FewShotClassifier


class StepState:
    """The state of objective, tuner and random generators, saved and restored so that a resumed run is the same run.

    Args:
        module: The module that is trained.
    """

    def __init__(self, module: FewShotClassifier) -> None:
        self.module = (module,)  # in a tuple, so that the module does not contain itself
        self._at_start: dict[str, Any] | None = None
        self._random: dict[str, Any] | None = None

    def begin(self) -> None:
        """Keep the state at the start of a step: a checkpoint that is written within it must repeat it."""
        self._at_start = self._now()

    def end(self) -> None:
        """Drop the state of a step that is done."""
        self._at_start = None

    def restart(self) -> None:
        """Restore the state at the start of the step, to compute it again."""
        (module,), state = self.module, self._at_start
        if state is not None:
            module.objective.set_extra_state(state["objective"])
            module.tuner.load_resume_state(state["tuner"])
            set_random_state(state["random"])

    def _now(self) -> dict[str, Any]:
        (module,) = self.module
        return {
            "objective": module.objective.get_extra_state(),
            "tuner": module.tuner.resume_state(),
            "random": random_state(module.device),
        }

    def save(self) -> dict[str, Any]:
        """Return the state as tensors and plain values; within a step that of its start."""
        (module,) = self.module
        batches: Any = module.trainer.fit_loop.epoch_loop.batch_progress.total
        if self._at_start is None or batches.ready == batches.processed:
            return self._now()
        if module.tuner.trains_itself or any(isinstance(part, _BatchNorm) for part in module.tuner.modules()):
            warnings.warn(
                f"this checkpoint was written within a step of the tuner {module.tuner.name}, which changes its state "
                "before the step is done: a run that is resumed from it will differ a little. Resume from an earlier "
                "checkpoint to get the same numbers.",
                stacklevel=2,
            )
        return self._at_start

    def load(self, state: Any) -> None:
        """Restore the state before the first batch is drawn; without one (an earlier dtrap), warn.

        Raises:
            DtrapError: The state is not one that `save` returned.
        """
        (module,) = self.module
        if state is None:
            warnings.warn(
                "this checkpoint has no state of objective, tuner and random generators (an earlier version of dtrap "
                "wrote it): the resumed run will differ from the uninterrupted one.",
                stacklevel=2,
            )
            return
        try:
            module.objective.set_extra_state(state["objective"])
            module.tuner.load_resume_state(state["tuner"])
            self._random = state["random"]
            set_random_state(self._random)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise DtrapError(
                f"the checkpoint's training state is not readable ({type(error).__name__}: {first_line(error)}). Use "
                "one that was saved with these settings and is not damaged."
            ) from error

    def start(self) -> None:
        """Restore the generators again in the middle of an epoch, where the loader has drawn from them once more."""
        (module,), random, self._random = self.module, self._random, None
        if random is None:
            return
        trainer = module.trainer
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        length = trainer.num_training_batches
        if batches.processed in (0, length) and batches.ready == batches.processed:
            return
        set_random_state(random)
        if batches.processed != length and batches.processed % trainer.accumulate_grad_batches:
            warnings.warn(
                "this checkpoint was written between the parts of an accumulated gradient, which Lightning does not "
                "save: the resumed run will differ from the uninterrupted one.",
                stacklevel=2,
            )


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's global generators of the CPU and of a device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(states: dict[str, Any]) -> None:
    """Restore the generators that this machine has."""
    for kind, state in states.items():
        if kind == "cpu":
            torch.set_rng_state(state.cpu())
        elif kind in ("cuda", "mps", "xpu") and torch.get_device_module(kind).is_available():
            torch.get_device_module(kind).set_rng_state(state.cpu())
