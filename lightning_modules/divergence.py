"""Notice that a training diverges, name its first bad step, and say what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .finite import DivergedError, first_not_finite


class DivergenceWatch:
    """Finds the first step whose loss is not finite, without waiting for the device in every step.

    Args:
        module: The FewShotClassifier that is trained.
        every: Number of losses on a device other than the CPU that are read at once.
    """

    def __init__(self, module: Any, every: int = 50) -> None:
        self._module = (module,)  # in a tuple, so that it is not a submodule of itself
        self.every = every
        self._unread: list[tuple[int, Tensor]] = []

    def reset(self) -> None:
        """Forget the losses of an earlier fit."""
        self._unread = []

    def add(self, loss: Tensor) -> None:
        """Add the loss of the current step, and check those that were not read yet if it is time.

        Raises:
            DivergedError: A loss is not finite; the message names the first such step.
        """
        self._unread.append((self._step, loss.detach()))
        if loss.device.type == "cpu" or len(self._unread) >= self.every:
            self._read()

    @property
    def _step(self) -> int:
        """Number of the current step, from 1."""
        module = self._module[0]
        # With optimizers of its own a tuner makes several optimizer steps in a batch.
        own = module.tuner.trains_itself
        return 1 + (module.trainer.fit_loop.epoch_loop.total_batch_idx if own else module.global_step)

    @contextmanager
    def naming_overflow(self) -> Iterator[None]:
        """Within it, a number that is too large for the type of the parameters is a DivergedError."""
        try:
            yield
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            reason = f"a number of the update in step {self._step} is too large for the type of the parameters"
            raise DivergedError(reason, divergence_remedy(self._module[0])) from error

    def check_losses(self) -> None:
        """Check the losses so far.

        Raises:
            DivergedError: A loss is not finite; the message names the first such step.
        """
        self._read()

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        if not unread:
            return
        finite = torch.stack([loss for _, loss in unread]).isfinite().tolist()
        for (step, _), sound in zip(unread, finite, strict=True):
            if not sound:
                # A tuner with steps of its own has updated its parameters before the first loss.
                updated = step > 1 or self._module[0].tuner.trains_itself
                remedy = divergence_remedy(self._module[0], updated=updated)
                raise DivergedError(f"the loss is not finite from step {step}", remedy)

    def check_trained(self) -> None:
        """Check all losses, the tuner's state and the optimizer's moments, before the state is saved or used.

        Raises:
            DivergedError: A loss or a tensor of the state is not finite.
        """
        self._read()
        module = self._module[0]
        trained = module.tuner.adapter_state()
        for owner, tensors in ((f"the tuner {module.tuner.name}", trained), ("the optimizer", _moments(module))):
            found = first_not_finite(tensors)
            if found is not None:
                steps = module.global_step
                reason = f"'{found}' of {owner} is not finite after step {steps}"
                raise DivergedError(reason, divergence_remedy(module, updated=steps > 0))


def _moments(module: Any) -> dict[str, Tensor]:
    """The optimizers' tensors, by such as "exp_avg_sq".

    A gradient whose square is too large makes Adam's second moment infinite: all its steps are 0 from then on, while
    losses and parameters stay finite.
    """
    trainer = module._trainer
    states = [state for optimizer in getattr(trainer, "optimizers", None) or [] for state in optimizer.state.values()]
    return {
        f"{name}, tensor {number}" if number else name: value
        for number, state in enumerate(states)
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def divergence_remedy(module: Any, *, updated: bool = True) -> str:
    """Return what to change in a FewShotClassifier whose training has diverged.

    Args:
        module: The module, in its Trainer.
        updated: Whether the trained parameters had been updated, so that the rate may be the cause.
    """
    trainer = module._trainer  # None without a Trainer; the property raises an error then
    if trainer is not None and trainer.precision in ("16-true", "transformer-engine-float16"):
        return f"use --trainer.precision 32-true, or 16-mixed on a GPU (now {trainer.precision})"
    if not updated:
        return (
            "nothing was trained yet, so the cause is not the rate: check the images, the weights of the backbone and "
            "--model.objective"
        )
    optimizers = getattr(trainer, "optimizers", None)
    if not optimizers:
        return "check the adapter, the weights of the backbone and --trainer.precision"
    group = optimizers[0].param_groups[0]
    if getattr(module, "own_optimizer", None) is not None:
        return f"lower --model.optimizer.lr (now {float(group.get('initial_lr', group['lr'])):g})"
    rate = module.learning_rate if module.learning_rate is not None else module.tuner.learning_rate
    final = getattr(module, "final_rate", None)
    if final is not None and final > rate:
        return f"lower --model.final_rate (now {final:g})"
    return f"lower --model.learning_rate (now {rate:g})"
