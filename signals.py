"""Signals that end a command: Ctrl-C, and what closing terminals and job schedulers send."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

# SLURM sends SIGUSR1 before the time limit (--signal=USR1@60). Windows has only the first two.
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
# A closing terminal sends SIGHUP twice: the kernel to the foreground group, and the shell to its jobs.
SECONDS_OF_ONE_SIGNAL = 0.5
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it


class StopSignals:
    """Turns the first signal into a KeyboardInterrupt; a second one ends the process of a command at once.

    A KeyboardInterrupt is lost where Python ignores exceptions (in `__del__`, or while worker processes are forked);
    `check` raises it again.

    Attributes:
        received: The first signal, or None.
        last_words: Printed where a signal ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.last_words = ""
        self._time, self._process = 0.0, 0
        self._ends_process = self._at_once = False

    @contextmanager
    def handled(self, numbers: Sequence[int] = ENDING, *, ends_process: bool = False) -> Iterator[None]:
        """Handle signals in this context, as far as their handlers are the defaults of Python or the system.

        A signal that is ignored (SIGHUP under nohup) stays ignored, and a caller's own handler stays. Python allows
        handlers in the main thread only; elsewhere this does nothing.

        Args:
            numbers: The signals.
            ends_process: Whether signals may end the process: at first all do, in `raising` the second one.
        """
        default = (signal.SIG_DFL, signal.default_int_handler)
        main = threading.current_thread() is threading.main_thread()
        before = {n: handler for n in numbers if main and (handler := signal.getsignal(n)) in default}
        if before:
            self.received, self._process = None, os.getpid()
            self._ends_process = self._at_once = ends_process
        for number in before:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, handler)
            if before:
                self.received = None

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise a KeyboardInterrupt at the first signal in this context, so that the work is ended in good order."""
        self._at_once = False
        try:
            yield
        finally:
            self._at_once = True

    @contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """End the process at the first signal in this context: imports may lose a KeyboardInterrupt or replace it."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def check(self) -> None:
        """Raise a KeyboardInterrupt if a signal has come before."""
        if self.received is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if number == self.received and now - self._time < SECONDS_OF_ONE_SIGNAL:
            return
        first, self.received = self.received is None, self.received or number
        self._time = now if first else self._time
        # A forked worker has inherited this handler; it ends as Python's own handler would end it.
        if self._ends_process and (self._at_once or not first) and os.getpid() == self._process:
            end = SHOW_CURSOR if os.isatty(2) else ""
            with suppress(OSError):  # the terminal may be gone
                os.write(2, f"{self.last_words}{end}\n".encode(errors="replace"))
            os._exit(128 + self.received)
        raise KeyboardInterrupt


STOP = StopSignals()
