"""Interrupts within a Trainer: they stop it at once, and leave the signal handlers as they were."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, Trainer

from ..errors import DtrapError
from ..signals import STOP


class Interrupts(Callback):
    """Stops a Trainer at the next batch after a signal that Python ignored; a second Ctrl-C is not ignored."""

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGINT)

    def on_train_batch_start(self, *_: Any) -> None:
        """Raise the KeyboardInterrupt that was lost."""
        STOP.check()

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start  # type: ignore[assignment]

    def on_exception(self, *_: Any) -> None:
        """Handle Ctrl-C again, which Lightning ignores from here on."""
        restore_ctrl_c(self._handler)


def restore_ctrl_c(handler: Any) -> None:
    """Set the handler of SIGINT in the main thread; elsewhere Python allows none."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep a Trainer from handling SIGTERM and SIGUSR1.

    Its handler only sets a flag that a fit reads at the end of a batch, and a test never; where SIGTERM is ignored, it
    calls the handler of another signal.
    """
    # Private: the Trainer has no option for it.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


@contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Raise the KeyboardInterrupt that Lightning turns into a SystemExit, and restore the handler of Ctrl-C.

    Raises:
        DtrapError: A callback or another part ended the program, which would end the run as if it were complete.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise DtrapError(
            f"the run was ended from within by SystemExit ({stop.code}). Look at your callbacks."
        ) from stop
    finally:
        restore_ctrl_c(handler)
