"""A worker process: an actor of Ray that keeps its backbones and runs one item after the other."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...errors import DtrapError


class Job(Protocol):
    """What the items of a run have in common; it is sent to every worker once."""

    def begin(self, worker: Worker) -> Any:
        """Load what the items need, and return a function of an item."""


@dataclass
class Outcome:
    """What has become of an item.

    Attributes:
        value: What the job's function returned.
        error: Message of a DtrapError; None where there was none.
        notes: Warnings and log lines, as "warning" or "log" and the text.
    """

    value: Any = None
    error: str | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)


class Worker:
    """Runs the items of one job after the other; an actor of Ray.

    Attributes:
        number: Number of the worker.
        desk: The actor that takes reports.
        loaded: Backbones and tuners that this process has loaded, for the next jobs.
    """

    def __init__(self) -> None:
        self.number = 0
        self.desk: Any = None
        self.loaded: dict[str, Any] = {}
        self._key: str | None = None
        self._run: Any = None

    def ready(self, number: int, threads: int, folder: str, path: list[str], desk: Any) -> int:
        """Import torch, and return the number of this process.

        Args:
            number: Number of the worker.
            threads: Threads of torch.
            folder: The driver's working folder, for relative paths; used where it exists.
            path: The driver's `sys.path`, for modules that the installed packages do not have.
            desk: The actor that takes reports.
        """
        self.number, self.desk = number, desk
        if os.path.isdir(folder):
            os.chdir(folder)
        sys.path += [entry for entry in path if entry not in sys.path]
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)
        with _collected([]):
            import lightning.pytorch  # noqa: F401  (it sets its own log level when it is imported)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        return os.getpid()

    def run(self, key: str, job: list[Any], item: Any) -> Outcome:
        """Run an item of a job.

        Args:
            key: Name of the job; the one of the item before is kept.
            job: The job's reference in Ray's store, in a list so that Ray does not fetch it for every item.
            item: The item.
        """
        outcome = Outcome()
        with _collected(outcome.notes):
            try:
                if key != self._key:
                    import ray

                    self._key = self._run = None
                    self._run = ray.get(job[0]).begin(self)
                    self._key = key
                outcome.value = self._run(item)
            except DtrapError as error:
                outcome.error = str(error)
        return outcome


class _Notes(logging.Handler):
    def __init__(self, notes: list[tuple[str, str]]) -> None:
        super().__init__(logging.WARNING)
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a record."""
        self.notes.append(("log", record.getMessage()))


@contextmanager
def _collected(notes: list[tuple[str, str]]) -> Iterator[None]:
    """Collect warnings and log lines of a command's kind instead of printing them in a file that nobody reads."""

    def keep(message: Any, category: type[Warning], *_: Any, **more: Any) -> None:
        if not issubclass(category, FutureWarning | DeprecationWarning | PendingDeprecationWarning):
            notes.append(("warning", str(message)))

    handler = _Notes(notes)
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = keep
            yield
    finally:
        logging.getLogger().removeHandler(handler)
