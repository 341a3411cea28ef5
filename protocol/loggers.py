"""The protocol's logger: one row per episode, whatever Lightning logger the config names."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from .results import Row
from .statistics import mean_interval

log = logging.getLogger(__name__)


def prepare_logger(trainer: Namespace, folder: Path, group: str, tags: Sequence[str], config: dict[str, Any]) -> None:
    """Name a configured WandbLogger's run after the run folder, in place; what the user set stays.

    Args:
        trainer: The trainer section of the parsed config.
        folder: The run folder.
        group: W&B group: data set, way and shot, so that a dashboard compares methods on one task.
        tags: W&B tags: data set, shot, backbone, tuner, method.
        config: The resolved config.
    """
    settings = trainer.get("logger")
    if not isinstance(settings, Namespace) or not settings.class_path.endswith("WandbLogger"):
        return
    folder.mkdir(parents=True, exist_ok=True)
    own = settings.init_args
    # save_dir's default "." is where the command was typed; a run's files belong to its folder
    for name, value in {"name": folder.name, "save_dir": str(folder)}.items():
        if own.get(name) in (None, "."):
            own[name] = value
    if own.get("id") is None and own.get("version") is None:
        own["id"] = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    extra = {"group": group, "tags": list(tags), "config": config, "resume": "allow"}
    given = dict(settings.get("dict_kwargs") or {})
    settings["dict_kwargs"] = {k: v for k, v in extra.items() if own.get(k) is None} | given
    for name in extra:
        own.pop(name, None)


class ProtocolLogger:
    """Logs one row per episode with the running mean and interval; a failing logger never stops the run.

    Args:
        configured: What the config's `trainer.logger` gave: loggers, True or None for the CSVLogger, False for none.
        folder: The run folder.
        config: The resolved config.
        methods: Names of the methods.
        warn: Shows one line to the user.
    """

    def __init__(
        self,
        configured: Any,
        folder: Path,
        config: dict[str, Any],
        methods: Sequence[str],
        warn: Callable[[str], None],
    ) -> None:
        self.methods = methods
        self.warn = warn
        if configured is False:
            self.loggers: list[Logger] = []
        elif configured is None or configured is True:
            (folder / "metrics.csv").unlink(missing_ok=True)
            self.loggers = [CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)]
        else:
            self.loggers = list(configured) if isinstance(configured, list | tuple) else [configured]
        for logger in list(self.loggers):
            self._attempt(logger, lambda logger=logger: self._start(logger, config))

    def _start(self, logger: Logger, config: dict[str, Any]) -> None:
        if isinstance(logger, WandbLogger):
            logger.experiment.define_metric("*", step_metric="episode")
        elif not isinstance(logger, CSVLogger):
            logger.log_hyperparams(config)

    def log_earlier(self, rows: Sequence[Row]) -> None:
        """Write the rows of an interrupted run again where a logger starts its file anew (CSV)."""
        for logger in self.loggers:
            if isinstance(logger, CSVLogger):
                for episode in sorted({row["episode"] for row in rows}):
                    metrics = self._metrics(rows, episode)
                    self._attempt(logger, lambda m=metrics, e=episode, lo=logger: lo.log_metrics(m, step=e))

    def log_episode(self, rows: Sequence[Row], episode: int) -> None:
        """Log an episode, given all rows so far."""
        metrics = self._metrics(rows, episode)
        for logger in list(self.loggers):
            step = None if isinstance(logger, WandbLogger) else episode
            self._attempt(logger, lambda s=step, lo=logger: lo.log_metrics(metrics, step=s))
            if isinstance(logger, WandbLogger):
                means = {k: v for k, v in metrics.items() if k.startswith(("mean/", "interval/"))}
                self._attempt(logger, lambda lo=logger, m=means: lo.experiment.summary.update(m))

    def finish(self, status: str) -> None:
        """End all loggers."""
        for logger in list(self.loggers):
            self._attempt(logger, lambda lo=logger: lo.finalize(status))
            if isinstance(logger, WandbLogger):
                self._attempt(logger, lambda lo=logger: lo.experiment.finish(0 if status == "success" else 1))

    def _metrics(self, rows: Sequence[Row], episode: int) -> dict[str, float]:
        metrics: dict[str, float] = {"episode": episode}
        for method in self.methods:
            own = [row for row in rows if row["method"] == method]
            for row in own:
                if row["episode"] == episode:
                    metrics |= _numbers(row, method)
            accuracies = [r["accuracy"] for r in own if r["accuracy"] is not None and r["episode"] <= episode]
            if accuracies:
                running = mean_interval(accuracies)
                metrics[f"mean/{method}"] = running.mean
                if running.half_width is not None:
                    metrics[f"interval/{method}"] = running.half_width
        return metrics

    def _attempt(self, logger: Logger, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self.loggers.remove(logger)
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            self.warn(
                f"{type(logger).__name__} failed ({reason[0]}); the run goes on without it, its rows are in results.jsonl."
            )


def _numbers(row: Row, method: str) -> dict[str, float]:
    numbers = {
        f"{key}/{method}": row[key]
        for key in ("accuracy", "zero_shot_accuracy", "seconds")
        if row.get(key) is not None
    }
    for moment, terms in (row.get("losses") or {}).items():
        numbers |= {f"{name}_{moment}/{method}": value for name, value in (terms or {}).items() if value is not None}
    return numbers
