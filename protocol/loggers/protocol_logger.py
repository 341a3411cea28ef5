"""Log one row per episode to the Lightning loggers of the config."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from ...errors import visible
from ..run_folder import Row, RunFolder
from .content import NOTHING, Content, episode_content, run_content
from .csv_files import CsvTarget, PlainCsvTarget, plain_csv
from .local_paths import without_local_paths
from .logged import Logged
from .mlflow import MlflowTarget
from .numbers import Numbers
from .target import Run, Target
from .tensorboard import TensorBoardTarget
from .wandb_run import NAME_CHARACTERS, TAG_CHARACTERS, WandbTarget, reason_of

_NOTHING: Mapping[str, float] = {}
KINDS: tuple[tuple[type[Logger], type[Target]], ...] = (
    (WandbLogger, WandbTarget),
    (TensorBoardLogger, TensorBoardTarget),
    (MLFlowLogger, MlflowTarget),
    (CSVLogger, CsvTarget),
)


class ProtocolLogger:
    """Logs one row per episode with the running means and intervals; a failing logger never stops the run.

    A W&B run is named after the run folder and belongs to it, also when the run is resumed; see `complete_wandb`. The
    names of the main method's numbers have no ending, so that runs of different methods share a chart: `accuracy`,
    `zero_shot_accuracy` and what goes with them, `test_images`, `seconds`, and each loss at the stage boundary and
    at the end (`L_vlm_boundary`, `L_vlm_end`). Of each accuracy the running `..._mean`, its 95% interval (half width
    `..._interval`, ends `..._low` and `..._high`; over repeats of held-out images `..._corrected_interval` and so on)
    and the numbers of `..._episodes` and test `..._images` that it rests on; of the cross-entropy and the other
    measures shown on the console mean, half width and episodes. A name has "_"
    for the "@" of `row_measures`. `diverged` counts the diverged episodes so far, which are in no mean. The names of
    the other methods' numbers end with `/NAME`, as do the paired `difference`, main minus other, and the same of the
    measures (`cross_entropy_difference`). Accuracies are in percent. `idle_share` is that of the time since this start
    in which the device had no batch, see `DeviceClock`.

    Loggers that hold more get the pictures that a run draws (`pictures/NAME`), and with the last episode the tables
    `per_class` and `confusion` and the charts of `dtrap report` (`figures/NAME`). A later start logs no episode again
    to a logger that goes on in the same place; see `Logged`.

    Args:
        configured: The Trainer's `logger`: one or several loggers, True or None for the CSVLogger, False for none.
        folder: The run folder.
        configs: The resolved config of each method, the main one first.
        warn: Shows one line to the user.
        group: Group of a W&B run: data set, way and shot, so that a dashboard compares methods on one task.
        tags: Tags of a W&B run: data set, shot, backbone, tuner, methods.
        facts: Flat settings and versions, see `facts_of`; added to the config that loggers get.
        log_paths: Whether loggers get local paths, too.
        unit: What a row is of: "episode" or "seed".
    """

    def __init__(
        self,
        configured: Any,
        folder: RunFolder,
        configs: Mapping[str, dict[str, Any]],
        warn: Callable[[str], None],
        group: str | None = None,
        tags: Iterable[str] = (),
        *,
        facts: Mapping[str, Any] | None = None,
        log_paths: bool = False,
        unit: str = "episode",
    ) -> None:
        self.methods = list(configs)
        self.numbers = Numbers(self.methods)
        self.folder, self.warn = folder, warn
        main, *others = self.methods
        config = {
            **_without_loggers(configs[main]),
            **(facts or {}),
            "method": main,
            "compared": {name: _without_loggers(configs[name]) for name in others},
        }
        tags = [tag for tag in tags if tag]
        self.config = without_null(config if log_paths else without_local_paths(config))
        self.wandb_defaults = {
            "name": visible(folder.path.resolve().name)[:NAME_CHARACTERS],
            "group": group and visible(group)[:NAME_CHARACTERS],
            "job_type": visible(main)[:TAG_CHARACTERS],
            "tags": list(dict.fromkeys(visible(tag)[:TAG_CHARACTERS] for tag in _tags(tags, log_paths))),
            "resume": "allow",
        }
        self.run = Run(
            folder,
            self.config,
            self.wandb_defaults,
            Logged(folder.logged),
            bool(folder.rows.read()),
            log_paths,
            warn,
            unit,
        )
        self.targets: list[Target] = []
        self._failed: list[Target] = []
        self._last: Content | None = None
        self._complete: set[Target] = set()  # those that have the content of the last episode
        self._rows: Sequence[Row] = []
        if configured is None or configured is True:
            self.targets = [PlainCsvTarget(plain_csv(folder), self.run)]
        elif configured:
            loggers = list(configured) if isinstance(configured, list | tuple) else [configured]
            self.targets = [_target(logger, self.run) for logger in loggers]
            for target in list(self.targets):
                self._attempt(target, target.start)

    def log_earlier(self, rows: Sequence[Row]) -> None:
        """Log the episodes that all methods finished in an earlier start; a logger gets only those that it lacks."""
        finished = [{row["episode"] for row in rows if row["method"] == method} for method in self.methods]
        self._log_all(rows, sorted(set.intersection(*finished)), earlier=True)

    def log_finished(self) -> None:
        """Log the rows of a run that is finished, for a logger that has nothing of it yet."""
        self.log_earlier(self.folder.rows.read())
        self.finish("success")

    def log_episode(
        self, rows: Sequence[Row], episode: int, idle_share: float | None = None, *, last: bool = False
    ) -> None:
        """Log an episode, given all rows so far.

        Args:
            rows: All rows so far.
            episode: Its number.
            idle_share: Share of the time so far in which the device had no batch; None if nothing was run.
            last: Whether it is the last one of the run, whose summary is written.
        """
        if last and any(target.holds for target in self.targets):
            self._last = self._content(rows, self.folder)
        self._log_all(rows, [episode], more={} if idle_share is None else {"idle_share": idle_share})

    def finish(self, status: str) -> None:
        """End all loggers.

        Args:
            status: "success", or another status of Lightning for a run that failed.
        """
        holders = [target for target in self.targets if target.holds]
        if holders and self._rows:
            means = self.numbers.means(self._rows)
            content = self._content(self._rows, None) if self._last is None else self._last
            for target in holders:
                logged = target in self._complete
                self._attempt(target, target.close, means, Content(content.tables) if logged else content)
        for target in list(self.targets):
            self._attempt(target, target.finish, status)
        for target in self._failed:
            with suppress(Exception):
                target.release()

    def metrics(self, rows: Sequence[Row], episode: int) -> dict[str, float]:
        """Return the numbers of one episode, and the running means over the episodes up to it."""
        return self.numbers.metrics(rows, episode)

    def means(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return means over the rows with their 95% intervals, and what they rest on."""
        return self.numbers.means(rows)

    def _content(self, rows: Sequence[Row], folder: RunFolder | None) -> Content:
        """Return tables and, of a folder, figures; without them a run is still logged."""
        try:
            return run_content(rows, self.methods, folder)
        except Exception as error:
            self.run.warn_once(f"no tables and figures for the loggers ({reason_of(error)})")
            return NOTHING

    def _log_all(
        self,
        rows: Sequence[Row],
        episodes: Sequence[int],
        *,
        earlier: bool = False,
        more: Mapping[str, float] = _NOTHING,
    ) -> None:
        self._rows = rows
        metrics = {episode: {**self.metrics(rows, episode), **more} for episode in episodes}
        for target in list(self.targets):
            self._attempt(target, self._log, target, metrics, earlier)
        means = self.means(rows) if episodes and self.targets else {}
        for target in list(self.targets):
            self._attempt(target, target.sum_up, means)

    def _log(self, target: Target, metrics: Mapping[int, Mapping[str, float]], earlier: bool) -> None:
        wanted = target.missing(list(metrics)) if earlier else [each for each in metrics if each not in target.known]
        for episode in wanted:
            content = self._pictures(episode) if target.holds else NOTHING
            if target.holds and not earlier and self._last is not None:
                content = Content(self._last.tables, {**content.pictures, **self._last.pictures})
                self._complete.add(target)
            target.log(metrics[episode], content)
            target.note(episode)

    def _pictures(self, episode: int) -> Content:
        return episode_content(self.folder, episode, self.run.unit)

    def _attempt(self, target: Target, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            self.targets.remove(target)
            self._failed.append(target)
            self.warn(
                f"{type(target.logger).__name__} failed ({reason_of(error)}); the run continues without it. Its rows "
                "are in results.jsonl."
            )


def _target(logger: Logger, run: Run) -> Target:
    return next((target for kind, target in KINDS if isinstance(logger, kind)), Target)(logger, run)


def _without_loggers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the options of loggers, among which a key may be."""
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping):
        return dict(config)
    return {**config, "trainer": {key: value for key, value in trainer.items() if key != "logger"}}


def without_null(value: Any) -> Any:
    """Return nested mappings without the keys whose value is null: that is how an option is left to its default."""
    if isinstance(value, Mapping):
        return {str(key): without_null(item) for key, item in value.items() if item is not None}
    return [without_null(item) for item in value] if isinstance(value, list | tuple) else value


def _tags(tags: Sequence[str], log_paths: bool) -> list[str]:
    return list(tags if log_paths else without_local_paths(list(tags)))
