"""Log one row per episode to the Lightning loggers of the config."""

from __future__ import annotations

import os
import secrets
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from ..errors import visible
from ..files import write_atomically
from .claims import MEASURES
from .measured import TESTED, ZERO_SHOT, row_measures
from .run_folder import RESUMES, Row, RunFolder
from .summary import SHOWN, summarize, tested_images

WANDB_ID_FILE = "wandb_id.txt"
# By default W&B waits 90 s for a connection at the start and without limit at the end. The last two settings keep W&B
# from printing the last row before the result line.
WANDB_SETTINGS = {
    "init_timeout": 15.0,
    "finish_timeout": 30.0,
    "max_end_of_run_history_metrics": 0,
    "max_end_of_run_summary_metrics": 0,
}
WANDB_TAG_CHARACTERS = 64
WANDB_NAME_CHARACTERS = 128
AVERAGED = ("accuracy", "zero_shot_accuracy", *MEASURES)
# Other measures with a running mean and a paired difference; of all that a monitor takes, a run may have hundreds.
MEASURED = (*SHOWN, *(ZERO_SHOT + key for key in TESTED[1:]))
# Suffix of a running mean's number, and the field of `Interval` that it is.
PARTS = {
    "mean": "mean",
    "interval": "half_width",
    "low": "low",
    "high": "high",
    "episodes": "count",
    "images": "images",
}
_NOTHING: Mapping[str, float] = {}
SHORT = ("mean", "interval", "episodes")  # parts of measures other than accuracies


def _wandb_id(folder: RunFolder) -> str:
    """Return the id stored in the folder if it has rows, else a new one, which is stored."""
    path = folder.path / WANDB_ID_FILE
    if path.exists() and folder.rows.read():
        return path.read_text(encoding="utf-8").strip()
    new = secrets.token_hex(8)
    write_atomically(path, f"{new}\n", RESUMES)
    return new


class ProtocolLogger:
    """Logs one row per episode with the running means and intervals; a failing logger never stops the run.

    A W&B run is named after the run folder and belongs to it, also when the run is resumed; see `complete_wandb`. The
    names of the main method's numbers have no ending, so that runs of different methods share a chart: `accuracy`,
    `zero_shot_accuracy` and what goes with them, `test_images`, `seconds`, and each loss at the stage boundary and
    at the end (`L_vlm_boundary`, `L_vlm_end`). Of each accuracy the running `..._mean`, its 95% interval (half width
    `..._interval`, ends `..._low` and `..._high`) and the numbers of `..._episodes` and test `..._images` that it rests
    on; of the cross-entropy and the other measures shown on the console mean, half width and episodes. A name has "_"
    for the "@" of `row_measures`. `diverged` counts the diverged episodes so far, which are in no mean. The names of
    the other methods' numbers end with `/NAME`, as do the paired `difference`, main minus other, and the same of the
    measures (`cross_entropy_difference`). Accuracies are in percent. `idle_share` is that of the time since this start
    in which the device had no batch, see `DeviceClock`.

    Args:
        configured: The Trainer's `logger`: one or several loggers, True or None for the CSVLogger, False for none.
        folder: The run folder.
        configs: The resolved config of each method, the main one first.
        warn: Shows one line to the user.
        group: Group of a W&B run: data set, way and shot, so that a dashboard compares methods on one task.
        tags: Tags of a W&B run: data set, shot, backbone, tuner, methods.
    """

    def __init__(
        self,
        configured: Any,
        folder: RunFolder,
        configs: Mapping[str, dict[str, Any]],
        warn: Callable[[str], None],
        group: str | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        self.methods = list(configs)
        self.folder, self.warn = folder, warn
        main, *others = self.methods
        self.config = {**configs[main], "method": main, "compared": {name: configs[name] for name in others}}
        self.wandb_defaults = {
            "name": visible(folder.path.resolve().name)[:WANDB_NAME_CHARACTERS],
            "group": group and visible(group)[:WANDB_NAME_CHARACTERS],
            "job_type": visible(main)[:WANDB_TAG_CHARACTERS],
            "tags": list(dict.fromkeys(visible(tag)[:WANDB_TAG_CHARACTERS] for tag in tags if tag)),
            "config": self.config,
            "resume": "allow",
        }
        self.wandb_runs: dict[Logger, Any] = {}
        self.loggers: list[Logger] = []
        if configured is None or configured is True:
            # `log_earlier` writes the rows of earlier starts again.
            (folder.path / "metrics.csv").unlink(missing_ok=True)
            self.loggers = [CSVLogger(folder.path, name="", version="", flush_logs_every_n_steps=1)]
        elif configured:
            self.loggers = list(configured) if isinstance(configured, list | tuple) else [configured]
            for logger in list(self.loggers):
                self._attempt(logger, self._start, logger)

    def _start(self, logger: Logger) -> None:
        if isinstance(logger, WandbLogger):
            complete_wandb(logger, self.folder, self.wandb_defaults)
            self.wandb_runs[logger] = run = start_wandb(logger, self.warn)
            run.define_metric("episode", summary="none")
            run.define_metric("*", step_metric="episode", summary="none")
        else:
            logger.log_hyperparams(self.config)

    def log_earlier(self, rows: Sequence[Row]) -> None:
        """Log the episodes that all methods finished in an earlier start.

        A resumed W&B run gets only those that it does not have yet.
        """
        finished = [{row["episode"] for row in rows if row["method"] == method} for method in self.methods]
        self._log_all(rows, sorted(set.intersection(*finished)))

    def log_episode(self, rows: Sequence[Row], episode: int, idle_share: float | None = None) -> None:
        """Log an episode, given all rows so far.

        Args:
            rows: All rows so far.
            episode: Its number.
            idle_share: Share of the time so far in which the device had no batch; None if nothing was run.
        """
        self._log_all(rows, [episode], new=True, more={} if idle_share is None else {"idle_share": idle_share})

    def finish(self, status: str) -> None:
        """End all loggers.

        Args:
            status: "success", or another status of Lightning for a run that failed.
        """
        for logger in list(self.loggers):
            self._attempt(logger, logger.finalize, status)
        for run in self.wandb_runs.values():
            with suppress(Exception):
                run.finish(0 if status == "success" else 1)

    def metrics(self, rows: Sequence[Row], episode: int) -> dict[str, float]:
        """Return the numbers of one episode, and the running means over the episodes up to it."""
        metrics: dict[str, float] = {"episode": episode}
        for row in rows:
            if row["episode"] == episode and row["method"] in self.methods:
                metrics |= {key + self._ending(row["method"]): value for key, value in _numbers(row).items()}
        for method in self.methods[1:]:
            for key in ("accuracy", *SHOWN):
                first, other = metrics.get(key), metrics.get(f"{key}/{method}")
                if first is not None and other is not None:
                    metrics[f"{_difference(key)}/{method}"] = first - other
        return metrics | self.means([row for row in rows if row["episode"] <= episode])

    def means(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return means over the rows with their 95% intervals, and what they rest on."""
        summary = summarize(rows, "", self.methods, episodes=sys.maxsize)
        found = []
        for name, method in summary["methods"].items():
            found += [(key, name, method.get(key), tuple(PARTS)) for key in AVERAGED]
            found += [(key, name, method.get(key), SHORT) for key in MEASURED]
        for name, differences in summary["measure_differences"].items():
            found += [(_difference(key), name, differences.get(key), tuple(PARTS)) for key in ("accuracy", *SHOWN)]
        means: dict[str, float] = {}
        for key, name, interval, parts in found:
            for part in parts if interval is not None else ():
                value = interval[PARTS[part]]
                if value is not None and not (part == "interval" and value == 0):  # 0 of identical values: no interval
                    means[f"{key}_{part}{self._ending(name)}"] = value
        for name, method in summary["methods"].items():
            for key in ("diverged", "untested_classes"):
                if method[key]:
                    means[f"{key}{self._ending(name)}"] = len(method[key])
        return means

    def _ending(self, method: str) -> str:
        return "" if method == self.methods[0] else f"/{method}"

    def _log_all(
        self, rows: Sequence[Row], episodes: Sequence[int], *, new: bool = False, more: Mapping[str, float] = _NOTHING
    ) -> None:
        metrics = [{**self.metrics(rows, episode), **more} for episode in episodes]
        for logger in list(self.loggers):
            there = 0 if new else getattr(self.wandb_runs.get(logger), "starting_step", 0)
            self._attempt(logger, self._log, logger, metrics[there:])
        for logger, run in self.wandb_runs.items():
            if logger in self.loggers:
                self._attempt(logger, run.summary.update, self.means(rows))

    def _log(self, logger: Logger, episodes: Sequence[dict[str, float]]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
            for metrics in episodes:
                logger.log_metrics(metrics, step=None if logger in self.wandb_runs else int(metrics["episode"]))

    def _attempt(self, logger: Logger, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            self.loggers.remove(logger)
            self.warn(
                f"{type(logger).__name__} failed ({_reason(error)}); the run continues without it. Its rows are in "
                "results.jsonl."
            )


def complete_wandb(logger: WandbLogger, folder: RunFolder, defaults: Mapping[str, Any]) -> None:
    """Complete the arguments of a logger's W&B run in place; the user's arguments stay.

    The W&B run is named after the run folder and writes into it. A resumed run keeps its W&B id, which is stored in the
    folder; a run that starts over gets a new id.

    Args:
        logger: The logger, whose run has not started.
        folder: The run folder.
        defaults: Arguments of `wandb.init` for those that the user has not set.
    """
    import wandb

    # Private: the arguments of wandb.init, which cannot be changed in another way once the logger exists.
    options = logger._wandb_init
    if options.get("dir") in (None, "."):  # "." is WandbLogger's default
        options["dir"] = str(folder.path)
    if options.get("id") is None:
        options["id"] = _wandb_id(folder)
    for option, default in defaults.items():
        if options.get(option) is None:
            options[option] = default
    settings, unset = options.get("settings"), wandb.Settings()
    if isinstance(settings, wandb.Settings):  # the command's parser has filled in all that the user left out
        for option, value in WANDB_SETTINGS.items():
            if getattr(settings, option) == getattr(unset, option):
                setattr(settings, option, value)
    else:
        options["settings"] = {**WANDB_SETTINGS, **(settings or {})}


def start_wandb(logger: WandbLogger, warn: Callable[[str], None]) -> Any:
    """Start a logger's W&B run, offline if W&B cannot be reached or there is no API key.

    Returns:
        The run.
    """
    import wandb

    options = logger._wandb_init
    if options.get("anonymous") is None:
        options.pop("anonymous", None)  # W&B warns about this argument, even if it is None
    with _no_prompt():
        try:
            return logger.experiment
        except Exception as error:
            wandb.teardown()  # the failed attempt still holds the run's id
            options["mode"] = "offline"
            run = logger.experiment
            path = Path(run.dir).parent
            warn(f"no connection to W&B ({_reason(error)}); logging offline. Upload later with: wandb sync {path}")
            return run


@contextmanager
def _no_prompt() -> Iterator[None]:
    """Replace the standard input: on a terminal, W&B asks for a missing API key and waits without limit."""
    terminal = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = terminal


def _difference(key: str) -> str:
    return "difference" if key == "accuracy" else f"{key}_difference"


def _numbers(row: Row) -> dict[str, float]:
    # MLflow takes no "@" in a name.
    numbers = {name.replace("@", "_"): value for name, value in row_measures(row).items()}
    if row.get("seconds") is not None:
        numbers["seconds"] = row["seconds"]
    images = tested_images(row)
    if "accuracy" in numbers and images is not None:
        numbers["test_images"] = images
    for moment, terms in (row.get("losses") or {}).items():
        numbers |= {f"{name}_{moment}": value for name, value in (terms or {}).items() if value is not None}
    return numbers


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
