"""One logger of a run, of any kind: what it is given and when. The kinds that hold more have files of their own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.loggers import Logger

from ..run_folder import RunFolder
from .content import Content
from .logged import Logged


@dataclass
class Run:
    """What the loggers of a run have in common.

    Attributes:
        folder: The run folder.
        config: What is sent as config or hyperparameters.
        names: Name, group, job type and tags of the run.
        logged: Which episodes were logged where.
        has_rows: Whether the folder has rows of an earlier start.
        keeps_paths: Whether local paths may be sent.
        warn: Shows one line to the user.
    """

    folder: RunFolder
    config: dict[str, Any]
    names: dict[str, Any]
    logged: Logged
    has_rows: bool
    keeps_paths: bool
    warn: Callable[[str], None]
    unit: str = "episode"
    _said: set[str] = field(default_factory=set)

    def warn_once(self, message: str) -> None:
        """Show a line unless it was shown before."""
        if message not in self._said:
            self._said.add(message)
            self.warn(message)


class Target:
    """A logger of any kind: it gets the config as hyperparameters, and the numbers of every episode.

    Args:
        logger: The logger.
        run: What the loggers of the run have in common.

    Attributes:
        holds: Whether the logger takes tables and pictures.
        place: Where it logs to, if it goes on there in a later start; None for a logger that starts again.
        known: Episodes of earlier starts that it has.
    """

    holds = False

    def __init__(self, logger: Logger, run: Run) -> None:
        self.logger, self.run = logger, run
        self.place: str | None = None
        self.known: set[int] = set()

    def goes_on(self, place: str) -> None:
        """Log to a place, where episodes of earlier starts may be."""
        self.place, self.known = place, self.run.logged.episodes(place)

    def missing(self, episodes: Sequence[int]) -> list[int]:
        """Return which of the episodes of earlier starts, in order, the logger lacks."""
        return [episode for episode in episodes if episode not in self.known]

    def start(self) -> None:
        """Start the logger."""
        with quiet():
            self.logger.log_hyperparams(self.run.config)

    def log(self, metrics: Mapping[str, float], content: Content) -> None:
        """Log an episode.

        Args:
            metrics: Its numbers, `episode` among them.
            content: Pictures and, with the last episode, tables and figures.
        """
        with quiet():
            self.logger.log_metrics(dict(metrics), step=int(metrics["episode"]))

    def note(self, episode: int) -> None:
        """Note that the logger has an episode."""
        if self.place is not None:
            self.run.logged.add(self.place, [episode])

    def sum_up(self, means: Mapping[str, float]) -> None:
        """Take the means of all rows so far."""

    def close(self, means: Mapping[str, float], content: Content) -> None:
        """Take the means of all rows and the tables before the end."""

    def finish(self, status: str) -> None:
        """End the logger."""
        with quiet():
            self.logger.finalize(status)

    def release(self) -> None:
        """Free what the logger holds, also after it has failed."""

    def place_in(self, kind: str, folder: str | os.PathLike[str]) -> str:
        """Return the name of a folder as a place: relative to the run folder, which may be moved."""
        return f"{kind} {os.path.relpath(folder, self.run.folder.path)}"


@contextmanager
def quiet() -> Iterator[None]:
    """Show no warning of a logger that expects other calls."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        yield
