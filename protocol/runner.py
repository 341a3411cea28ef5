"""The loop of a run: every method on every episode that has no result yet."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..callbacks import StageSwitch
from ..console import SafeConsole, say, say_on_terminal
from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError, check_one_of
from ..keywords import Unpack
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.finite import DivergedError
from ..signals import STOP
from . import claims
from .checks import check_settings, processes_of
from .configuration import MethodConfig
from .device_clock import DeviceSeconds
from .episode import cheap_collection, without_expected_warnings
from .episode_run import EpisodeRun
from .explanation import explained_use
from .folder_identity import FolderIdentity, Method
from .folder_names import default_run_folder
from .following import follow
from .loggers import ProtocolLogger, in_sweep, run_logger
from .method_names import find_same
from .module_method import ModuleMethod
from .precision import lines_about, settle_precision
from .preprocessing import settle_test_preprocessing
from .processes import Processes
from .progress import EpisodeProgress
from .rehearsal import Loaded
from .result import ProtocolResult
from .result_files import ResultFiles
from .row_sources import RowsHere
from .run_folder import Row, RunFolder
from .saved_files import tell_saved
from .settings import ProtocolOptions, ProtocolSettings
from .side_by_side.episodes import EpisodeGroups
from .space import check_space, sizes_of_files
from .summary import render, summarize
from .time_estimate import TimeEstimate
from .workers.options import check_ray

if TYPE_CHECKING:
    from .workers.pool import WorkerPool
    from .workers.run import RowsOfWorkers


def run_protocol(
    methods: Mapping[str, Callable[[], FewShotClassifier] | MethodConfig],
    data: FewShotDataModule,
    *,
    trainer: Mapping[str, Any] | None = None,
    stage_switch: StageSwitch | None = None,
    console: Console | None = None,
    **settings: Unpack[ProtocolOptions],
) -> ProtocolResult:
    """Train and test methods on the same episodes, as `dtrap fit` does, and return the results.

    Every finished episode is a row in the run folder. A second call with the same folder resumes: only missing
    episodes are run. It is refused if a method or the data have changed. Compared are, for a module from a factory, the
    class paths and constructor arguments of module, tuner, objective and data module that are kept as attributes, the
    backbone's identifier, `trainer` (without device, logger and display options), `stage_switch`, and the names and
    labels of the data files. The code of your own classes and functions is not compared.

    Args:
        methods: By name, a function that returns a FewShotClassifier, called once, or a parsed config. The first is the
            main method; paired differences are the first minus each other. Modules may share a backbone and tuner.
        data: The data module; its episodes are numbered from 0.
        trainer: Arguments of the Trainer that differ from those of `dtrap fit` (250 epochs on one device), for the
            methods that are functions. `logger=False` writes no metrics.csv.
        stage_switch: The stage of SVL and RA for the methods that are functions; its first 3/5 if None.
        console: Where the progress is printed; the result is what `print` shows of the returned object. After an
            interruption, the result so far is printed, too. `Console(quiet=True)` prints nothing.
        **settings: `episodes` (400), `folder`, `overwrite` (False) and which files to write; see `ProtocolSettings`.

    Returns:
        Rows, means with intervals, and paired differences.

    Raises:
        DtrapError: A method, the data or a setting is not as expected, the folder belongs to another experiment, or
            every episode of a method diverged (at the end).
        KeyboardInterrupt: The run was interrupted; the rows of finished episodes are kept.
    """
    for name in settings:
        check_one_of("run_protocol: a keyword argument", name, ProtocolOptions.__annotations__)
    if not methods:
        raise DtrapError("methods is empty; expected at least one, such as {'svl-ra': make_module}.")
    chosen = [
        replace(method, name=name, old_name=None)
        if isinstance(method, MethodConfig)
        else ModuleMethod(name, method, data, trainer, stage_switch)
        for name, method in methods.items()
    ]
    run = ProtocolRun(chosen, data, ProtocolSettings(**settings), console or SafeConsole())
    return run.run(show=False)


class ProtocolRun:
    """One run: methods, data and folder.

    Args:
        methods: The methods, the main one first.
        data: The data module.
        settings: Number of episodes, and which files are written.
        console: Where progress and results are printed.

    Attributes:
        loaded: Backbones and tuners of earlier runs of this process, which are used; those of this run are added.
        pool: Worker processes of a study; without them a run with `workers` starts its own.
        known: Returns rows of other runs by method and episode, which are copied instead of being computed.
        device: Seconds of the episodes that this object has run, and how many of them the device had a batch.
        begun: Whether the folder holds results of this run, and none of one that it overwrites.
        tells_device: Whether to say what the device decides, which is the same for the runs of a study.
        shared: Whether several devices may share its tasks.

    Raises:
        DtrapError: The results would be written into the user's image folder.
    """

    def __init__(
        self, methods: Sequence[Method], data: FewShotDataModule, settings: ProtocolSettings, console: Console
    ) -> None:
        self.methods, self.data, self.settings, self.console = methods, data, settings, console
        self.loaded: Loaded | None = None
        self.known: Callable[[], Mapping[tuple[str, int], Row]] = dict
        self.device = self._earlier = DeviceSeconds()
        self.pool: WorkerPool | None = None
        if settings.workers is not None:
            check_ray()
        self.main = methods[0]
        self.names = [method.name for method in methods]
        self.episodes = min(settings.episodes, data.tasks or settings.episodes)
        self.folder = RunFolder(settings.folder or default_run_folder(methods, data))
        self.record = FolderIdentity(self.folder, methods, data)
        self.begun, self.tells_device, self.shared = False, True, True
        stored = {} if settings.overwrite else self.record.stored()
        settle_test_preprocessing(data, methods, stored["methods"][stored["main"]] if stored else None)
        settle_precision(methods, stored)
        self._diverged: set[str] = set()
        if data.own_images and self.folder.path.resolve().is_relative_to(data.root.resolve()):
            raise DtrapError(
                f"the results would go to {self.folder.path}, inside the images' folder {data.root}, where they would "
                "count as a class. Give --protocol.folder FOLDER elsewhere, or start from another folder."
            )

    def run(self, *, show: bool = True) -> ProtocolResult:
        """Run the missing episodes and return the result.

        Args:
            show: Whether to print the result; one that is interrupted is always printed.

        Raises:
            KeyboardInterrupt: The run was interrupted; the result so far has been printed.
        """
        with without_expected_warnings():
            alone = self.settings.workers is not None or self.pool is not None
            team = None if alone else processes_of(self.methods, self.data, allowed=self.shared)
        if team is None:
            return self._lead(None, show)
        with team:
            if team.leads:
                return self._lead(team, show)
            result = follow(team, self.methods, self.data, self.settings, self.folder, self.loaded)
            self._refuse_all_diverged(result[0])
            return ProtocolResult(self.folder.path, *result)

    def _lead(self, team: Processes | None, show: bool) -> ProtocolResult:
        with STOP.handled([signal.SIGINT]), self.folder.lock(), without_expected_warnings():
            overwrite = self.settings.overwrite and self.folder.identity.exists()
            if not overwrite:
                self._earlier = DeviceSeconds.read(self.folder.summary)
                self.record.keep_old_names()
                self.names = [method.name for method in self.methods]
                self.record.check_methods()
            every, rows = list(range(self.episodes)), self.folder.rows
            missing = {name: every if overwrite else rows.missing(name, self.episodes) for name in self.names}
            if any(missing.values()):
                run = self._prepare(missing, overwrite=overwrite)
                self.begun = True
                if overwrite:
                    self.folder.clear()
                self.record.record()
                try:
                    self._run_missing(missing, run, team)
                except (KeyboardInterrupt, Exception) as error:
                    # A worker process that the same signal ended raises a RuntimeError.
                    if not isinstance(error, KeyboardInterrupt) and (
                        STOP.received is None or isinstance(error, DtrapError)
                    ):
                        raise
                    self._finish(complete=False, show=True)
                    raise KeyboardInterrupt from error
            else:
                if self.data.root.exists():  # without the data the result is shown, with other data it is not
                    self.record.check_data_files()
                if in_sweep():  # the agent's own W&B run has nothing yet
                    self._logger(self.main.trainer_arguments(folder=self.folder.path)["logger"]).log_finished()
                self._say(f"Already finished: {self.folder.path} (use --protocol.overwrite true to start over)")
            result = self._finish(complete=True, show=show)
            if team is not None:
                team.finish((result.rows, result.summary))
        self._refuse_all_diverged(result.rows)
        return result

    def _prepare(self, missing: dict[str, list[int]], *, overwrite: bool) -> EpisodeRun:
        """Return what runs the episodes; a mistake is found before a file is touched."""
        say_on_terminal(self.console, f"Reading {self.data.title} …")
        with explained_use([self.data]):
            check_settings(self.methods, self.data, self.settings)
            tasks = sorted(set().union(*missing.values()))
            self.data.note_split_groups(tasks)
            self.data.check_images(tasks)
            self.data.setup()
        if not overwrite and self.folder.rows.read():
            self.record.check_data_files()
        for name, first in find_same(self.methods).items():
            self._say(f"'{name}' trains the same as '{first}', which is run once and shown under both names.")
        say_on_terminal(self.console, f"Loading {', '.join(dict.fromkeys(m.backbone for m in self.methods))} …")
        run = EpisodeRun(self.methods, self.data, self.settings, self.folder, self.loaded)
        check_space(
            self.folder,
            run.modules,
            missing,
            save_adapters=self.settings.save_adapters,
            checkpoints=self.data.streams,
            overwrite=overwrite,
            others=sizes_of_files(self.settings, self.data, run.modules, missing),
        )
        return run

    def _run_missing(self, missing: dict[str, list[int]], run: EpisodeRun, team: Processes | None) -> None:
        episodes = sorted(set().union(*missing.values()))
        for line in dict.fromkeys(module.describe_training() for module in run.modules.values()):
            self._say(line)
        for line in lines_about(self.methods) if self.tells_device else ():
            self._say(line)
        if team is not None:
            self._say(f"{team.count} devices share every batch.")
        self._say(f"Results: {self.folder.path}")
        self.record.record_subsets(episodes)
        rows = [row for row in self.folder.rows.read() if row["episode"] < self.episodes]
        logger = self._logger(run.arguments[self.main.name].get("logger"))
        logger.log_earlier(rows)
        known = self.known()
        progress = EpisodeProgress(self.episodes, self.names, rows=rows, unit=self.data.unit, console=self.console)
        progress.estimate = TimeEstimate.of(run, missing, known, self.data.unit)
        status = "failed"
        try:
            with self._workers() as pool, progress, cheap_collection():
                parts = run, missing, rows, partial(self._given, run, known, rows), self._append, progress
                groups = EpisodeGroups(run, self._say, alone=team is not None)
                source: RowsHere | RowsOfWorkers
                if pool is None:
                    source = RowsHere(*parts, groups, team)
                else:
                    from .workers.run import RowsOfWorkers

                    source = RowsOfWorkers(pool, *parts, groups)
                left = Counter(episode for name in missing for episode in missing[name])
                for row in source:
                    self.device = source.device
                    self._warn_diverged(row)
                    rows.append(row)
                    progress.finish(row)
                    left[row["episode"]] -= 1
                    while episodes and not left[episodes[0]]:  # workers finish them in any order
                        last = len(episodes) == 1
                        if last:  # the loggers' figures are made of the summary
                            self._summarize(complete=True)
                        logger.log_episode(rows, episodes.pop(0), self.device.idle_share, last=last)
            status = "success"
        finally:
            self.data.decode_no_more()
            if run.feature_stores is not None:
                run.feature_stores.save(now=True)
            logger.finish(status)
        if run.feature_stores is not None and run.feature_stores.line:
            self._say(run.feature_stores.line)

    @contextmanager
    def _workers(self) -> Iterator[WorkerPool | None]:
        """Start the worker processes that the settings ask for, unless a study has some; None to run episodes here."""
        if self.pool is not None or self.settings.workers is None:
            yield self.pool
            return
        from .workers.run import pool_of

        with pool_of(self.settings, self.methods, self._say) as pool:
            yield pool

    def _given(
        self, run: EpisodeRun, known: Mapping[tuple[str, int], Row], rows: Sequence[Row], name: str, episode: int
    ) -> Row | None:
        """Write and return a row that need not be computed; None where it must be."""
        if name in run.same:
            return self._repeat(rows, episode, run.same[name], name)
        found = known.get((name, episode))
        return None if found is None else self._append({**found, "method": name})

    def _logger(self, configured: Any) -> ProtocolLogger:
        parts = self.folder, self.methods, self.data, self.settings, self.episodes, self._warn
        return run_logger(configured, *parts)

    def _warn_diverged(self, row: Row) -> None:
        """Say once for each method that an episode diverged; the summary counts the others."""
        if "diverged" in row and row["method"] not in self._diverged:
            self._diverged.add(row["method"])
            self._warn(claims.told_diverged(self.data.unit, row))

    def _refuse_all_diverged(self, rows: Sequence[Row]) -> None:
        """Raise a DivergedError if no episode of a method has a result."""
        for name in self.names:
            found = [row for row in rows if row["method"] == name]
            if found and all(row.get("diverged") for row in found):
                many = f"{claims.counted(len(found), self.data.unit)} of {len(found)}"
                which = "the training" if self.data.unit == claims.TASK else many
                reason = f"'{name}' has no result: {which} diverged ({found[0]['diverged']})"
                raise DivergedError(reason, "change that and start over with --protocol.overwrite true")

    def _repeat(self, rows: Sequence[Row], episode: int, first: str, name: str) -> Row:
        """Write the row of a method that trains the same as an earlier one, under its own name."""
        (known,) = [row for row in rows if (row["method"], row["episode"]) == (first, episode)]
        return self._append({**known, "method": name, "same_as": first})

    def _append(self, row: Row) -> Row:
        self.folder.check_present()
        self.folder.rows.append(row)
        return row

    def _summarize(self, *, complete: bool) -> tuple[list[Row], dict[str, Any]]:
        """Write the summary, and return the rows and the summary."""
        self.folder.check_present()
        rows, data = self.folder.rows.read(), self.data
        rows.sort(key=lambda row: row["episode"])  # workers finish them in any order; sums must not depend on it
        support = len(data.support_ids) if complete and not data.has_query else None
        summary = summarize(
            rows, data.description, self.names, episodes=self.episodes, support_images=support, unit=data.unit
        )
        summary["protocol"] = data.protocol
        summary["device"] = (self._earlier + self.device).summary()
        for method in self.methods:
            summary["methods"][method.name] |= {"backbone": method.backbone, "tuner": method.tuner}
        self.folder.write_json(self.folder.summary, summary)
        return rows, summary

    def _finish(self, *, complete: bool, show: bool) -> ProtocolResult:
        """Write the summary, print it if wanted, and return the result.

        Raises:
            DtrapError: The folder is gone, or rows are missing at the end of a complete run.
        """
        rows, summary = self._summarize(complete=complete)
        data = self.data
        chosen = [row for row in rows if row["method"] in self.names and row["episode"] < self.episodes]
        files = ResultFiles.of(self.folder, data, self.names, chosen, new=self.begun) if complete else None
        if show:
            if files is not None:
                files.show(self.console)
            elif self.device.total:
                self._say(f"{self.device} (see idle_share in summary.json)")
            render(summary, self.console)
        if data.skipped_images:
            copies = sum("the same image as" in reason for _, reason in data.skipped_images)
            kinds = f" ({copies} of them copies of training images)" if copies else ""
            self._say(f"{len(data.skipped_images)} missing or unreadable images left out{kinds}; listed above.")
        for line in files.lines() if files is not None else ():
            self._say(line)
        if self.settings.save_adapters:
            tell_saved(self.folder.adapters, chosen, self._say, complete=complete)
        if self.settings.save_predictions and data.has_query:
            tell_saved(self.folder.predictions, chosen, self._say, complete=complete)
        kept = [row for row in chosen if row["episode"] < self.settings.save_features]
        if kept:
            tell_saved(self.folder.features, kept, self._say, complete=complete)
        lost = len(self.names) * self.episodes - len(chosen)
        if complete and lost:
            raise DtrapError(f"{self.folder.results}: {lost} rows are missing. Rerun the same command; it runs them.")
        return ProtocolResult(self.folder.path, chosen, summary)

    def _say(self, line: str) -> None:
        say(self.console, line)

    def _warn(self, message: str) -> None:
        self._say(f"Warning: {message}")
