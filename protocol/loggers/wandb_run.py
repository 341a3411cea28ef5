"""The W&B run of a protocol run: named after the run folder, resumed with its id, offline without a connection."""

from __future__ import annotations

import io
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from ...files import write_atomically
from ..run_folder import RESUMES, RunFolder
from .content import Content
from .numbers import goal_of, is_summary
from .target import Target

WANDB_ID_FILE = "wandb_id.txt"
# By default W&B waits 90 s for a connection at the start and without limit at the end. The last two settings keep W&B
# from printing the last row before the result line.
WANDB_SETTINGS = {
    "init_timeout": 15.0,
    "finish_timeout": 30.0,
    "max_end_of_run_history_metrics": 0,
    "max_end_of_run_summary_metrics": 0,
}
# What W&B sends on its own accord: the program with its arguments, host, user and folders; the printed lines, which
# name folders; and the state of the repository that is the current folder.
WANDB_PRIVATE = {
    "x_disable_meta": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "host": "",
    "program": "dtrap",
}
TAG_CHARACTERS = 64
NAME_CHARACTERS = 128
NOT_IN_FILE_NAMES = re.compile(r'[<>:"\\|?*\x00-\x1f]')


class WandbTarget(Target):
    """A WandbLogger. What an offline run already has is noted in the run folder; a server says it itself."""

    holds = True
    logger: WandbLogger
    wandb_run: Any = None

    def start(self) -> None:
        """Start the W&B run, and note its id: the agent of a sweep gives its own."""
        run = self.run
        complete_wandb(self.logger, run.folder, {**run.names, "config": run.config}, private=not run.keeps_paths)
        self.wandb_run = started = start_wandb(self.logger, run.warn)
        write_atomically(run.folder.path / WANDB_ID_FILE, f"{started.id}\n", RESUMES)
        self.goes_on(f"wandb {started.id}")
        if not started.offline:
            self.known = set(sorted(self.known)[: started.starting_step])  # the others are in a run that is not synced
        self._defined: set[str] = set()
        started.define_metric("episode", summary="none")
        started.define_metric("*", step_metric="episode", summary="none")

    def missing(self, episodes: Sequence[int]) -> list[int]:
        """Return the episodes that the W&B run lacks; a server may have more than the folder notes."""
        counted = 0 if self.wandb_run.offline else self.wandb_run.starting_step - len(self.known)
        return super().missing(episodes)[counted:]

    def log(self, metrics: Mapping[str, float], content: Content) -> None:
        """Log the numbers of an episode with its pictures, and with the last one tables and figures, as one row."""
        if self.wandb_run.offline and not self._defined and self.known:
            # Rows of several offline runs of one id are numbered on; an empty row is not written.
            self.wandb_run.log({}, step=len(self.known))
        for name in metrics.keys() - self._defined - {"episode"}:
            self._define(name)
        self._defined.update(metrics)
        media = self._attempt_media(content)
        self.logger.log_metrics({**metrics, **media})

    def sum_up(self, means: Mapping[str, float]) -> None:
        """Write the means into the summary of the W&B run."""
        self.wandb_run.summary.update(dict(means))

    def close(self, means: Mapping[str, float], content: Content) -> None:
        """Write the tables into the summary, where W&B compares those of several runs."""
        self.wandb_run.summary.update(self._attempt_media(content))

    def release(self) -> None:
        """End the W&B run of a logger that has failed."""
        if self.wandb_run is not None:
            with suppress(Exception):
                self.wandb_run.finish(1)

    def finish(self, status: str) -> None:
        """End the W&B run."""
        super().finish(status)
        self.wandb_run.finish(0 if status == "success" else 1)

    def _define(self, name: str) -> None:
        """Say what a metric is: of each episode, or of all so far, and which way it is better."""
        if "*" in name:  # a pattern for W&B
            return
        summary, goal = "last" if is_summary(name) else "none", goal_of(name)
        definition = self.wandb_run.define_metric(name, step_metric="episode", summary=summary)
        if goal is not None:
            with suppress(Exception):
                _publish_goal(definition, name, summary, goal)

    def _attempt_media(self, content: Content) -> dict[str, Any]:
        """Return tables and pictures as W&B takes them; without them the numbers are still logged."""
        try:
            return _media(content)
        except Exception as error:
            self.run.warn_once(f"no pictures or tables for W&B ({type(error).__name__}: {error})")
            return {}


def _media(content: Content) -> dict[str, Any]:
    import wandb

    found: dict[str, Any] = {}
    for name, table in content.tables.items():
        found[name] = wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
    for name, picture in content.pictures.items():
        with Image.open(io.BytesIO(picture.png())) as image:
            found[NOT_IN_FILE_NAMES.sub("_", name)] = wandb.Image(image.copy(), caption=picture.caption)
    return found


def _publish_goal(definition: Any, name: str, summary: str, goal: str) -> None:
    """Add the goal to the definition of a metric."""
    from wandb.proto.wandb_internal_pb2 import MetricRecord

    record = MetricRecord(name=name, step_metric="episode")
    record.options.defined = record.options.step_sync = True
    setattr(record.summary, summary, True)
    record.goal = getattr(MetricRecord, f"GOAL_{goal.upper()}")
    # Private: W&B's records and its pages know goals, but `define_metric` has lost its argument for them.
    definition._callback(record)


def in_sweep() -> bool:
    """Whether the agent of a sweep has started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def complete_wandb(
    logger: WandbLogger, folder: RunFolder, defaults: Mapping[str, Any], *, private: bool = True
) -> None:
    """Complete the arguments of a logger's W&B run in place; the user's arguments stay.

    The W&B run is named after the run folder and writes into it. A resumed run keeps its W&B id, which is stored in the
    folder; a run that starts over gets a new id. WANDB_RUN_ID, which the agent of a sweep sets, comes before both.

    Args:
        logger: The logger, whose run has not started.
        folder: The run folder.
        defaults: Arguments of `wandb.init` for those that the user has not set.
        private: Whether W&B is kept from recording program, arguments, host and printed lines.
    """
    import wandb

    # Private: the arguments of wandb.init, which cannot be changed in another way once the logger exists.
    options = logger._wandb_init
    if options.get("dir") in (None, "."):  # "." is WandbLogger's default
        options["dir"] = str(folder.path)
    if options.get("id") is None and not os.environ.get("WANDB_RUN_ID"):
        options["id"] = _wandb_id(folder)
    for option, default in defaults.items():
        if options.get(option) is None:
            options[option] = default
    wanted: dict[str, Any] = {**WANDB_SETTINGS, **(WANDB_PRIVATE if private else {})}
    settings, unset = options.get("settings"), wandb.Settings()
    if isinstance(settings, wandb.Settings):  # the command's parser has filled in all that the user left out
        for option, value in wanted.items():
            if getattr(settings, option) == getattr(unset, option):
                setattr(settings, option, value)
    else:
        options["settings"] = {**wanted, **(settings or {})}


def _wandb_id(folder: RunFolder) -> str:
    """Return the id stored in the folder if it has rows, else a new one."""
    path = folder.path / WANDB_ID_FILE
    if path.exists() and folder.rows.read():
        return path.read_text(encoding="utf-8").strip()
    return secrets.token_hex(8)


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
            warn(f"no connection to W&B ({reason_of(error)}); logging offline. Upload later with: wandb sync {path}")
            return run


def reason_of(error: Exception) -> str:
    """Return the first line of an exception's message, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _no_prompt() -> Iterator[None]:
    """Replace the standard input: on a terminal, W&B asks for a missing API key and waits without limit."""
    terminal = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = terminal
