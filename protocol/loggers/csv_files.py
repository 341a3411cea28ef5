"""Content for a CSVLogger: tables as CSV files next to its metrics; pictures are in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger

from ...files import write_atomically
from ..run_folder import RESUMES
from .content import Content
from .target import Target


class CsvTarget(Target):
    """A CSVLogger of the config; a later start writes its file again with all episodes."""

    holds = True
    logger: CSVLogger

    def log(self, metrics: Mapping[str, float], content: Content) -> None:
        """Log the numbers, and write the tables."""
        super().log(metrics, content)
        self.logger.save()  # a stopped run has every episode
        self._write(content)

    def close(self, means: Mapping[str, float], content: Content) -> None:
        """Write the tables."""
        self._write(content)

    def _write(self, content: Content) -> None:
        for name, table in content.tables.items():
            write_atomically(Path(self.logger.log_dir, f"{name}.csv"), table.csv(), RESUMES)


class PlainCsvTarget(Target):
    """The CSVLogger of a run without loggers: metrics.csv; the rest is in the run folder anyway."""

    def start(self) -> None:
        """Start nothing: the config is in the run folder."""


def plain_csv(folder: Any) -> CSVLogger:
    """Return the logger of a run that has none; it writes metrics.csv with all episodes again."""
    (folder.path / "metrics.csv").unlink(missing_ok=True)
    return CSVLogger(folder.path, name="", version="", flush_logs_every_n_steps=1)
