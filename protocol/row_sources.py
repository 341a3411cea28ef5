"""Rows of the missing episodes, run in this process one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest

from ..signals import STOP
from .device_clock import DeviceSeconds
from .episode_run import EpisodeRun
from .processes import Processes, Task
from .progress import EpisodeProgress
from .run_folder import Row


class RowsHere:
    """Rows of the missing episodes in their order; each is written before it is returned.

    Args:
        run: Runs methods on episodes.
        missing: Missing episodes by method.
        rows: The rows so far; the caller adds those that this returns.
        given: Returns the row of a method and an episode that need not be run, written; None where one must be.
        append: Writes a row.
        progress: Shows every step.
        team: The processes that share a task; None for this one alone.

    Attributes:
        device: Time with and without a batch.
    """

    def __init__(
        self,
        run: EpisodeRun,
        missing: Mapping[str, Sequence[int]],
        rows: Sequence[Row],
        given: Callable[[str, int], Row | None],
        append: Callable[[Row], Row],
        progress: EpisodeProgress,
        team: Processes | None = None,
    ) -> None:
        self.run, self.missing, self.rows, self.given = run, missing, rows, given
        self.append, self.progress, self.team = append, progress, team
        self.device = DeviceSeconds()

    def __iter__(self) -> Iterator[Row]:
        episodes, data = sorted(set().union(*self.missing.values())), self.run.data
        for episode, following in zip_longest(episodes, episodes[1:]):
            data.set_episode(episode)
            data.expect(following)
            for place, name in enumerate(self.run.methods):
                if episode in self.missing[name]:
                    STOP.check()
                    self.progress.begin(episode)
                    yield self.given(name, episode) or self._run(name, place, episode)
                    gc.collect()

    def _run(self, name: str, place: int, episode: int) -> Row:
        if self.team is not None:
            self.team.send(Task(episode, place, [row for row in self.rows if row["episode"] == episode]))
        row = self.run.run(name, self.progress, self.rows, self.append)
        self.device = self.run.clock.seconds()
        return row
