"""The loss scale of 16-mixed: a step whose gradient overflows is repeated with a smaller one instead of being lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .finite import DivergedError

# From 65536 this is a scale of 2e-8: a gradient that overflows with it does so with any.
MOST_REPEATS = 40
# Steps of a tuner's own cannot be repeated; torch's first scale of 65536 overflows, this one does not.
OWN_STEPS_START = 1024.0


class LossScale:
    """Watches the Trainer's gradient scaler, which leaves out an update whose gradient is not finite.

    Without it, the first step of 16-mixed would count although it changed nothing: torch's first scale is too large.

    Args:
        module: The FewShotClassifier that is trained.

    Attributes:
        skipped: Number of updates of this fit that were left out.
    """

    def __init__(self, module: Any) -> None:
        self._module = (module,)  # in a tuple, so that it is not a submodule of itself
        self.skipped = 0
        self._scale: float | None = None  # the last one that was read: reading waits for the device
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def reset(self) -> None:
        """Forget an earlier fit."""
        self.skipped, self._scale = 0, None

    @property
    def scaler(self) -> Any:
        """The scaler of the Trainer's precision; None without one."""
        trainer = self._module[0]._trainer
        scaler = getattr(getattr(trainer, "precision_plugin", None), "scaler", None)
        return scaler if scaler is not None and scaler.is_enabled() else None

    def start(self) -> None:
        """Lower the first scale for a tuner with steps of its own."""
        (module,), scaler = self._module, self.scaler
        if scaler is not None and module.tuner.trains_itself and module.global_step == 0:
            scaler.load_state_dict({**scaler.state_dict(), "scale": min(scaler.get_scale(), OWN_STEPS_START)})
        self._scale = None if scaler is None else scaler.get_scale()

    def begin(self) -> None:
        """Keep what a batch changes before its update, to repeat it."""
        (module,) = self._module
        if self.scaler is not None and not module.tuner.trains_itself:
            norms = (part for part in module.tuner.modules() if isinstance(part, _BatchNorm))
            self._buffers = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]

    def end(self) -> None:
        """Count the updates that a tuner's own steps have lost in this batch."""
        (module,), scaler = self._module, self.scaler
        if scaler is not None and module.tuner.trains_itself:
            self.skipped += round(math.log(self._lowered(scaler)) / -math.log(scaler.get_backoff_factor()))

    def _lowered(self, scaler: Any) -> float:
        """Return by which factor the scale was lowered since it was read last; 1 if it was not."""
        before, self._scale = self._scale, scaler.get_scale()
        return max((before or self._scale) / self._scale, 1.0)

    def step(self, make: Callable[[], None], check: Callable[[], None], restart: Callable[[], None]) -> None:
        """Make an update; repeat it with a smaller scale as long as its gradient overflows.

        Args:
            make: Runs the closure and the update.
            check: Looks at the losses, so that one that is not finite is found before it is computed again.
            restart: Restores the state before the batch.

        Raises:
            DivergedError: A loss is not finite, or the gradient is not with any scale.
        """
        (module,), scaler = self._module, self.scaler
        if scaler is None:
            make()
            return
        self._scale = self._scale or scaler.get_scale()
        for _ in range(MOST_REPEATS):
            make()
            if self._lowered(scaler) == 1:
                return
            if module.trainer.accumulate_grad_batches != 1:  # the gradients of the other batches are gone
                self.skipped += 1
                return
            check()
            restart()
            for buffer, kept in self._buffers:
                buffer.copy_(kept)
        raise DivergedError(
            f"the gradient of step {module.global_step + 1} is not finite with any loss scale",
            "use --trainer.precision bf16-mixed or 32-true",
        )
