"""Content for an MLFlowLogger: metrics, parameters, and tables and pictures as artifacts."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger

from ...errors import visible
from .content import Content
from .target import Target

# By default MLflow tries a server that cannot be reached for several minutes, in each call.
BOUNDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
# A store of files has one for each name, so that `lambda` and `lambda/baseline` exclude each other.
NOT_ALLOWED = re.compile(r"[^\w. -]+", re.ASCII)


class MlflowTarget(Target):
    """An MLFlowLogger; a later start goes on in the same MLflow run with the episodes that it lacks."""

    holds = True
    logger: MLFlowLogger

    def start(self) -> None:
        """Start the MLflow run, or go on with that of an earlier start."""
        for name, value in BOUNDS.items():
            os.environ.setdefault(name, value)
        logger, run = self.logger, self.run
        tags = {"mlflow.source.name": "dtrap", "mlflow.source.type": "LOCAL", **self._tags()}
        logger.tags = {**tags, **(logger.tags or {})}
        with _silent():
            # Private: arguments of the constructor, for what the user has not set.
            if logger._run_name is None and "mlflow.runName" not in logger.tags:
                logger._run_name = run.names["name"]
            if logger._run_id is None and run.has_rows:
                logger._run_id = self._earlier()
            self.goes_on(f"mlflow {logger.run_id}")
            run.logged.add(f"mlflow {logger.run_id}")
            known = logger.experiment.get_run(logger.run_id).data.params  # a parameter cannot be changed
            logger.log_hyperparams({name: value for name, value in _flat(run.config).items() if name not in known})

    def log(self, metrics: Mapping[str, float], content: Content) -> None:
        """Log the numbers of an episode, and pictures and tables as artifacts."""
        super().log({_name(name): value for name, value in metrics.items()}, content)
        self._write(content, int(metrics["episode"]))

    def close(self, means: Mapping[str, float], content: Content) -> None:
        """Log the tables."""
        self._write(content, None)

    def _write(self, content: Content, episode: int | None) -> None:
        client, run_id = self.logger.experiment, self.logger.run_id
        for name, table in content.tables.items():
            client.log_text(run_id, table.csv(), f"tables/{name}.csv")
        with tempfile.TemporaryDirectory() as folder:
            for name, picture in content.pictures.items():
                kind, _, stem = name.rpartition("/")
                number = f"episode_{episode:04d}_" if kind == "pictures" and episode is not None else ""
                path = Path(folder, f"{number}{stem}.png")
                path.write_bytes(picture.png())
                client.log_artifact(run_id, str(path), kind or None)

    def _tags(self) -> dict[str, str]:
        names = self.run.names
        found = {"group": names["group"], "method": names["job_type"], "tags": ", ".join(names["tags"])}
        return {f"dtrap.{name}": visible(value) for name, value in found.items() if value}

    def _earlier(self) -> str | None:
        """Return the MLflow run of an earlier start if it is still there."""
        for run_id in reversed(self.run.logged.places("mlflow")):
            try:
                # Private: the client, without starting a run.
                if self.logger._mlflow_client.get_run(run_id).info.lifecycle_stage == "active":
                    return run_id
            except Exception:  # of any kind: another server, or deleted
                continue
        return None


def _name(name: str) -> str:
    """Return a name of a metric or parameter that MLflow allows: `accuracy.baseline` for `accuracy/baseline`."""
    return NOT_ALLOWED.sub("_", name.replace("/", "."))


def _flat(value: Mapping[str, Any], beginning: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by names that MLflow allows."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = _name(f"{beginning}{key}")
        found |= _flat(item, f"{name}.") if isinstance(item, Mapping) else {name: item}
    return found


@contextmanager
def _silent() -> Iterator[None]:
    """Let MLflow and Lightning not say that they create what does not exist yet."""
    found = [logging.getLogger(name) for name in ("mlflow", "lightning.pytorch.loggers.mlflow")]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)
