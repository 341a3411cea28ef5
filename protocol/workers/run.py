"""The driver's side of a run: hands out methods on episodes, and writes files and rows as they come back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...datamodules.few_shot import FewShotDataModule
from ...errors import DtrapError
from ...files import write_atomically
from ...signals import STOP
from ..configuration import MethodConfig
from ..device_clock import DeviceSeconds
from ..episode_run import EpisodeRun
from ..folder_identity import Method
from ..progress import EpisodeProgress
from ..run_folder import RESUMES, Row, RunFolder
from ..settings import ProtocolSettings
from ..side_by_side.episodes import EpisodeGroups
from .episodes import Done, Item, RunJob
from .options import parse_workers
from .pool import Finished, WorkerPool, uses_gpu

logger = logging.getLogger(__name__)


def pool_of(settings: ProtocolSettings, methods: Sequence[Method], say: Callable[[str], None]) -> WorkerPool:
    """Return the pool that a run asks for; it is started as a context.

    Raises:
        DtrapError: The Trainer is bound to a certain device, which only Ray can choose.
    """
    assert settings.workers is not None
    trainers = [method.values["trainer"] for method in methods]
    for trainer in trainers:
        if trainer.get("devices") not in (1, "1", "auto", None):
            raise DtrapError(
                f"--trainer.devices is {trainer['devices']}, but each of the workers has one device that Ray chooses. "
                "Leave it out; CUDA_VISIBLE_DEVICES=2,3 limits the GPUs of this machine."
            )
    return WorkerPool(parse_workers(settings.workers), gpu=any(map(uses_gpu, trainers)), say=say)


class RowsOfWorkers:
    """Rows of the missing episodes in the order in which workers finish them; each is written before it is returned.

    Args:
        pool: The workers.
        run: Modules and settings of the run.
        missing: Missing episodes by method.
        rows: The rows so far; the caller adds those that this returns.
        given: Returns the row of a method and an episode that need not be run, written; None where one must be.
        append: Writes a row.
        progress: Shows what the workers have done.
        groups: Says how many episodes of a method a worker trains side by side.

    Attributes:
        device: Time with and without a batch, of all workers.
    """

    def __init__(
        self,
        pool: WorkerPool,
        run: EpisodeRun,
        missing: Mapping[str, Sequence[int]],
        rows: Sequence[Row],
        given: Callable[[str, int], Row | None],
        append: Callable[[Row], Row],
        progress: EpisodeProgress,
        groups: EpisodeGroups,
    ) -> None:
        self.pool, self.run, self.rows, self.given = pool, run, rows, given
        self.groups, self._missing = groups, missing
        self.append, self.progress = append, progress
        self.data: FewShotDataModule = run.data
        self.folder: RunFolder = run.folder
        self.device = DeviceSeconds()
        self._open: dict[int, list[str]] = {}  # methods that wait for another row of the episode, by episode
        for episode in sorted(set().union(*missing.values())):
            self._open[episode] = [name for name in run.methods if episode in missing[name]]
        self._needs = {name: _references(run, name) for name in run.methods}
        self._sent: set[tuple[str, int]] = set()
        self._notes: set[tuple[str, str]] = set()
        self._failed: list[str] = []
        self._shares: dict[int, float] = {}

    def __iter__(self) -> Iterator[Row]:
        self.data.set_episode(0)
        methods = [replace(m) if isinstance(m, MethodConfig) else m for m in self.run.methods.values()]
        self._add = self.pool.add(RunJob(methods, self.data, replace(self.run.settings, workers=None)))
        self.progress.begin(next(iter(self._open)))
        if self.progress.estimate is not None:
            self.progress.estimate.workers = self.pool.count
        try:
            self.groups.choose(self._missing, measured=False)
            for group, _ in self.groups.groups(list(self._open)):
                yield from self._begin(group)
            while self._sent:
                STOP.check()
                finished = self.pool.next()
                self._show_progress()
                if finished is not None and finished.key == self._add.key:  # type: ignore[attr-defined]
                    yield from self._take(finished)
        finally:
            self.pool.forget(self._add.key)  # type: ignore[attr-defined]
        if self._failed:
            raise DtrapError(self._failed[0])

    def _begin(self, group: Sequence[int]) -> Iterator[Row]:
        """Send the methods of episodes whose references have rows; yield the rows that need not be run."""
        there = {(row["method"], row["episode"]): row for row in self.rows if row["episode"] in group}
        for name in self.run.methods:
            chosen = []
            for episode in group:
                needed = {(other, episode) for other in self._needs[name]}
                if name not in self._open.get(episode, ()) or not needed <= there.keys():
                    continue
                self._open[episode].remove(name)
                row = self.given(name, episode)
                if row is None:
                    chosen.append(episode)
                else:
                    there[name, episode] = row
                    yield row
            size = self.groups.sizes.get(name, 1)
            for first in range(0, len(chosen), size):
                self._send(name, chosen[first : first + size], there)

    def _send(self, name: str, episodes: Sequence[int], there: Mapping[tuple[str, int], Row]) -> None:
        rows = tuple(there[other, episode] for episode in episodes for other in self._needs[name])
        self._sent |= {(name, episode) for episode in episodes}
        self._add(Item(name, tuple(episodes), self.data.unit, rows), self._with_checkpoint)

    def _with_checkpoint(self, item: Item) -> Item:
        """Return an item with the newest checkpoint of its task."""
        if not self.data.streams:
            return item
        self._collect()
        path = self._checkpoint(item.method, item.episodes[0])
        return replace(item, checkpoint=path.read_bytes() if path.is_file() else None)

    def _checkpoint(self, method: str, episode: int) -> Any:
        return self.folder.checkpoints / f"episode_{episode:04d}_{method}.ckpt"

    def _take(self, finished: Finished) -> Iterator[Row]:
        item, outcome = finished.item, finished.outcome
        self._warn(outcome.notes)
        if outcome.error is not None and not finished.fatal:
            raise DtrapError(outcome.error)
        done: Done = outcome.value or Done()
        if outcome.error is not None:  # the others go on; its dependents are left out
            self._failed.append(outcome.error)
        self.data.skipped_images += [image for image in done.skipped if image not in self.data.skipped_images]
        self.device = self.device + done.seconds
        self._sent -= {(item.method, episode) for episode in item.episodes}
        for row, files in done.rows:
            self.folder.check_present()
            for name, content in files.items():
                write_atomically(self.folder.path / name, content, RESUMES)
            self.append(row)
            self.progress.begin(row["episode"])
            yield row
            if self.data.streams:
                self._remove_checkpoint(row)
            yield from self._begin([row["episode"]])

    def _remove_checkpoint(self, row: Row) -> None:
        path = self._checkpoint(row["method"], row["episode"])
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()

    def _show_progress(self) -> None:
        self._collect()
        running = self.pool.running()
        self._shares = {number: share for number, share in self._shares.items() if number in running}
        if running:
            self.progress.share(sum(self._shares.values()))
        for number, task in running.items():
            if number in self._shares and isinstance(task.item, Item):
                item = task.item
                self.progress.looked((number, item.episodes), item.method, self._shares[number], len(item.episodes))

    def _collect(self) -> None:
        """Take what the workers have reported; write the checkpoints of tasks that still run."""
        report = self.pool.report()
        self._shares |= report.shares
        running = {self._checkpoint(name, episode).name for name, episode in self._sent}
        for name, content in report.checkpoints.items():
            path = self.folder.path / name
            if path.name in running:
                self.folder.check_present()
                write_atomically(path, content, RESUMES)

    def _warn(self, notes: Sequence[tuple[str, str]]) -> None:
        """Pass on what a worker has warned of, unless another one has said it before."""
        for kind, text in notes:
            if (kind, text) in self._notes:
                continue
            self._notes.add((kind, text))
            if kind == "warning":
                warnings.warn(text, stacklevel=2)
            else:
                logger.warning("%s", text)


def _references(run: EpisodeRun, name: str) -> set[str]:
    """Return the methods whose rows of an episode a method needs."""
    if name in run.same:
        return {run.same[name]}
    callbacks = run.arguments[name].get("callbacks") or []
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    needed = (getattr(callback, "reference", None) for callback in listed if hasattr(callback, "use_row"))
    return {reference for reference in needed if reference is not None}
