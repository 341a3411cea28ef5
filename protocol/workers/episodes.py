"""The worker's side of a run: methods on episodes, with rows and files that go back to the driver."""

from __future__ import annotations

import gc
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ...datamodules.few_shot import FewShotDataModule
from ..claims import TASK, number_of
from ..configuration import MethodConfig
from ..device_clock import DeviceSeconds
from ..episode import cheap_collection, without_expected_warnings
from ..episode_run import EpisodeRun
from ..folder_identity import Method
from ..progress import EpisodeProgress
from ..rehearsal import parts_key
from ..run_folder import Row, RunFolder
from ..settings import ProtocolSettings
from ..side_by_side.episodes import EpisodeGroups
from .worker import Worker

MOST_REPORTS = 50  # of the progress of an item


@dataclass(frozen=True)
class Item:
    """A method on episodes.

    Attributes:
        method: Name of the method.
        episodes: Numbers of the episodes.
        unit: What a task is called.
        rows: Rows of other methods on these episodes, which a callback may need.
        checkpoint: Content of the checkpoint at which a task is resumed; None for none.
    """

    method: str
    episodes: tuple[int, ...]
    unit: str = "episode"
    rows: tuple[Row, ...] = ()
    checkpoint: bytes | None = None

    def __str__(self) -> str:
        if self.unit == TASK:
            return f"the training of '{self.method}'"
        return f"{self.unit} {', '.join(number_of(self.unit, each) for each in self.episodes)} of '{self.method}'"


@dataclass
class Done:
    """What an item has given.

    Attributes:
        rows: Each row with its files, by their path in the run folder.
        skipped: Images that were left out, with the reasons.
        seconds: Time with and without a batch.
    """

    rows: list[tuple[Row, dict[str, bytes]]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    seconds: DeviceSeconds = field(default_factory=DeviceSeconds)


@dataclass(frozen=True)
class RunJob:
    """What the items of a run have in common."""

    methods: Sequence[Method]
    data: FewShotDataModule
    settings: ProtocolSettings

    def begin(self, worker: Worker) -> Callable[[Item], Done]:
        """Load the modules of the methods; what no method needs any longer is freed."""
        needed = {parts_key(method) for method in self.methods if isinstance(method, MethodConfig)}
        for key in worker.loaded.keys() - needed:
            del worker.loaded[key]
        gc.collect()
        temporary = tempfile.TemporaryDirectory(prefix="dtrap_", dir=_session_folder(), ignore_cleanup_errors=True)
        folder = RunFolder(temporary.name)
        with without_expected_warnings():
            run = EpisodeRun(self.methods, self.data, self.settings, folder, worker.loaded)
        return _Items(run, worker, temporary)


class _Items:
    """Runs items; the files of each are collected from a temporary folder."""

    def __init__(self, run: EpisodeRun, worker: Worker, temporary: Any) -> None:
        self.run, self.worker, self._temporary = run, worker, temporary

    def __call__(self, item: Item) -> Done:
        done = Done()
        data, before = self.run.data, self.run.clock.seconds()
        with without_expected_warnings(), cheap_collection():
            skipped, first = len(data.skipped_images), item.episodes[0]
            data.set_episode(first)
            self._restore(item, first)
            progress, rows = _Progress(item, self), item.rows
            if len(item.episodes) == 1:
                self.run.run(item.method, progress, rows, lambda row: self._keep(row, done))
            else:
                for _ in self._side_by_side(item, progress, done):
                    gc.collect()
            done.skipped += data.skipped_images[skipped:]
            gc.collect()
        after = self.run.clock.seconds()
        done.seconds = DeviceSeconds(after.total - before.total, after.busy - before.busy)
        return done

    def _side_by_side(self, item: Item, progress: EpisodeProgress, done: Done) -> Iterator[Row]:
        groups = EpisodeGroups(self.run, lambda line: None)
        groups.choose({item.method: item.episodes}, measured=False)
        return groups.run_several(item.method, item.episodes, progress, item.rows, lambda row: self._keep(row, done))

    def checkpoint(self, item: Item) -> Path:
        """Path of the checkpoint of an item, which has one episode."""
        return self.run.folder.checkpoints / f"episode_{item.episodes[0]:04d}_{item.method}.ckpt"

    def _restore(self, item: Item, episode: int) -> None:
        if item.checkpoint is not None and episode == item.episodes[0]:
            path = self.checkpoint(item)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(item.checkpoint)

    def _keep(self, row: Row, done: Done) -> None:
        folder = self.run.folder
        parts = (folder.adapters, folder.predictions, folder.features, folder.pictures)
        paths = [path for part in parts for path in part.glob("*") if path.is_file()]
        done.rows.append((row, {str(path.relative_to(folder.path)): path.read_bytes() for path in paths}))
        for path in paths:
            path.unlink()


class _Progress(EpisodeProgress):
    """Reports the progress of an item and its checkpoints to the driver instead of showing it."""

    def __init__(self, item: Item, items: _Items) -> None:
        super().__init__(1, [item.method], console=Console(file=io.StringIO()))
        self.item, self.items, self.reported = item, items, 0.0
        self._checkpoint = items.checkpoint(item)
        self._written = self._time()

    def _time(self) -> int:
        try:
            return self._checkpoint.stat().st_mtime_ns
        except OSError:
            return 0

    def _show(self) -> None:
        desk, worker = self.items.worker.desk, self.items.worker
        if self.fraction - self.reported >= 1 / MOST_REPORTS:
            self.reported = self.fraction
            desk.progress.options(num_returns=0).remote(worker.number, self.fraction)
        written = self._time() if self.items.run.data.streams else 0
        if written and written != self._written:
            self._written = written
            name = f"checkpoints/{self._checkpoint.name}"
            desk.checkpoint.options(num_returns=0).remote(name, self._checkpoint.read_bytes())


def _session_folder() -> str | None:
    """Folder of Ray's session: what a killed worker leaves there is deleted with it."""
    try:
        import ray

        return ray._private.worker.global_worker.node.get_session_dir_path()  # private: Ray has no other name for it
    except AttributeError:
        return None
