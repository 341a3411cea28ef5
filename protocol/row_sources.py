"""Rows of the missing episodes, run in this process one after the other or side by side."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..signals import STOP
from .device_clock import DeviceSeconds
from .episode_run import EpisodeRun
from .processes import Processes, Task
from .progress import EpisodeProgress
from .run_folder import Row
from .side_by_side.episodes import EpisodeGroups


class RowsHere:
    """Rows of the missing episodes in their order; each is written before it is returned.

    Args:
        run: Runs methods on episodes.
        missing: Missing episodes by method.
        rows: The rows so far; the caller adds those that this returns.
        given: Returns the row of a method and an episode that need not be run, written; None where one must be.
        append: Writes a row.
        progress: Shows every step.
        groups: Says which episodes run side by side.
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
        groups: EpisodeGroups,
        team: Processes | None = None,
    ) -> None:
        self.run, self.missing, self.rows, self.given = run, missing, rows, given
        self.append, self.progress, self.groups, self.team = append, progress, groups, team
        self.device = DeviceSeconds()

    def __iter__(self) -> Iterator[Row]:
        episodes, data = sorted(set().union(*self.missing.values())), self.run.data
        self.groups.choose(self.missing)
        for group, following in self.groups.groups(episodes):
            data.set_episode(group[0])
            data.expect(following)
            for place, name in enumerate(self.run.methods):
                chosen = []
                for episode in (episode for episode in group if episode in self.missing[name]):
                    STOP.check()
                    self.progress.begin(episode)
                    row = self.given(name, episode)
                    if row is None:
                        chosen.append(episode)
                    else:
                        yield row
                if chosen:
                    yield from self._run(name, place, chosen)

    def _run(self, name: str, place: int, episodes: list[int]) -> Iterator[Row]:
        if self.team is not None:
            (episode,) = episodes
            self.team.send(Task(episode, place, [row for row in self.rows if row["episode"] == episode]))
        for row in self.groups.run_several(name, episodes, self.progress, self.rows, self.append):
            self.device = self.run.clock.seconds()
            yield row
            gc.collect()
