"""The episodes of a run in groups: each method on all of a group at once, where that is possible."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback

from ...datamodules.few_shot import FewShotDataModule
from ...lightning_modules.image_cache import FrozenImageFeatures
from ...lightning_modules.members import member_of
from ..episode_run import EpisodeRun
from ..precision import describe_device, device_of
from ..progress import EpisodeProgress
from ..run_folder import Row
from .group import Episode, Group
from .reasons import reason_alone
from .size import SIZES, STEPS, KnownSizes, Stopwatch, best_size


class EpisodeGroups:
    """Runs methods on groups of episodes with an `EpisodeRun`.

    Args:
        run: Runs a method on one episode.
        say: Prints a line.
        alone: Whether to run all episodes one at a time, whatever the settings.

    Attributes:
        reasons: Why a method runs one episode at a time, by method; None for those that need not.
        sizes: Number of episodes side by side, by method.
    """

    def __init__(self, run: EpisodeRun, say: Callable[[str], None], *, alone: bool = False) -> None:
        self.run, self.say = run, say
        self.reasons: dict[str, str | None] = {}
        self.sizes = dict.fromkeys(run.modules, 1)
        self._sources: dict[int, FewShotDataModule] = {}
        self._images: dict[tuple[int, int], FrozenImageFeatures] = {}
        if alone or run.settings.side_by_side == 1:
            return
        for name, module in run.modules.items():
            switch = run.methods[name].stage_switch()
            self.reasons[name] = reason_alone(module, run.data, run.arguments[name], switch)

    def choose(self, missing: Mapping[str, Sequence[int]], *, measured: bool = True) -> None:
        """Settle how many episodes of each method run side by side, and say it.

        Args:
            missing: The episodes without a row, by method.
            measured: Whether the number may be measured where none is asked for; otherwise it is 1.
        """
        asked = self.run.settings.side_by_side
        for name, reason in self.reasons.items():
            device = device_of(self.run.arguments[name])
            if asked is None and (not measured or device is None or device.type == "cpu"):
                continue
            if reason is not None:
                self.say(f"{name}: one episode at a time: {reason}.")
            elif asked is not None:
                self.sizes[name] = asked
            elif device is not None and len(missing.get(name, [])) > 1:
                self.sizes[name] = self._measured(name, describe_device(device), missing[name])
            if self.sizes[name] > 1:
                self.say(f"{name}: {self.sizes[name]} episodes side by side.")

    @property
    def largest(self) -> int:
        """Number of episodes in a group."""
        return max(self.sizes.values(), default=1)

    def groups(self, episodes: Sequence[int]) -> Iterator[tuple[list[int], int | None]]:
        """Divide episodes into groups; yield each with the episode that follows it."""
        size = self.largest
        for first in range(0, len(episodes), size):
            following = episodes[first + size] if first + size < len(episodes) else None
            yield list(episodes[first : first + size]), following
            self._sources.clear()
            self._images.clear()

    def run_several(
        self,
        name: str,
        episodes: Sequence[int],
        progress: EpisodeProgress,
        rows: Sequence[Row],
        append: Callable[[Row], Any],
    ) -> Iterator[Row]:
        """Run a method on some episodes of a group and yield their rows; see `EpisodeRun.run`."""
        left = list(episodes)
        while left:
            chosen = left[: self.sizes[name]]
            if len(chosen) == 1:
                progress.begin(chosen[0], method=name)
                # Without others, it is the data module's own episode, which may have been decoded ahead.
                data = None if self.largest == 1 else self._source(chosen[0])
                yield self.run.run(name, progress, rows, append, data)
                left = left[1:]
                continue
            done, lost = self._together(name, chosen, progress, append)
            yield from done
            for episode in lost:
                progress.begin(episode, method=name)
                yield self.run.run(name, progress, rows, append, self._source(episode))
            finished = {row["episode"] for row in done} | set(lost)
            left = [episode for episode in left if episode not in finished]

    def _together(
        self, name: str, episodes: Sequence[int], progress: EpisodeProgress, append: Callable[[Row], Any]
    ) -> tuple[list[Row], list[int]]:
        """Return the rows of episodes side by side, and which of them diverged and are to run alone.

        Without room in the memory there may be neither; fewer are side by side from then on.
        """
        progress.begin(episodes[0], len(episodes), name)
        self.run.clock.begin()
        more = [self.run.callbacks(self._source(episode)) for episode in episodes]
        done: list[Row] = []
        lost: list[int] = []

        def finish(episode: Episode, row: Row | None) -> None:
            if row is None:
                lost.append(episode.data.episode)
                return
            row = self.run.finish(name, episode.module, episode.data, row, episode.more)
            append(row)
            done.append(row)

        try:
            self._group(name, episodes, progress, more, self.run.clock).run(finish)
        except torch.OutOfMemoryError:
            self._smaller(name, len(episodes))
        if self.run.feature_stores is not None:
            self.run.feature_stores.save()
        return done, lost

    def _smaller(self, name: str, count: int) -> None:
        """Halve the number of episodes side by side, for which the memory has no room."""
        torch.cuda.empty_cache()
        self.sizes[name] = count // 2
        self.say(f"{name}: the memory has no room for {count} episodes side by side; now {self.sizes[name]}.")

    def _group(
        self,
        name: str,
        episodes: Sequence[int],
        progress: EpisodeProgress,
        more: Sequence[Sequence[Callback]],
        clock: Callback,
        arguments: dict[str, Any] | None = None,
    ) -> Group:
        module = self.run.modules[name]
        sources = [self._source(episode) for episode in episodes]
        members = [
            member_of(module, source, self._images.setdefault((id(module._frozen_images), n), FrozenImageFeatures()))
            for n, source in zip(episodes, sources, strict=True)
        ]
        given = self.run.arguments[name] if arguments is None else arguments
        return Group(module, members, sources, given, self.run.methods[name].stage_switch(), progress, more, clock)

    def _source(self, episode: int) -> FewShotDataModule:
        """Return a data module that is set to an episode of the group, and keeps its decoded images."""
        if episode not in self._sources:
            self._sources[episode] = source = copy.copy(self.run.data)
            source._ahead = source._next = None  # what is decoded ahead stays the original's
            source.set_episode(episode)
        return self._sources[episode]

    def _measured(self, name: str, device: str, missing: Sequence[int]) -> int:
        known = KnownSizes(self.run.folder)
        size = known.get(device, name)
        if size is None:
            arguments = {**self.run.arguments[name], "max_steps": STEPS, "max_epochs": -1, "callbacks": None}
            silent = EpisodeProgress.silent()

            def seconds(count: int) -> float:
                watch = Stopwatch()
                episodes = list(missing[:count])
                self._group(name, episodes, silent, [[]] * count, watch, arguments).fit()
                return watch.seconds

            sizes = [each for each in SIZES if each <= len(missing)]
            known.keep(device, name, size := best_size(seconds, sizes))
            self._sources.clear()
            self._images.clear()
        return size
