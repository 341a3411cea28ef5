"""The options of a run: `--protocol.…` on the command line, keyword arguments of `run_protocol`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ..errors import DtrapError, check_at_least
from .workers.options import parse_workers


class ProtocolOptions(TypedDict, total=False):
    """Keyword arguments of `run_protocol`; `ProtocolSettings` describes them and has their defaults."""

    episodes: int
    folder: str | None
    overwrite: bool
    pictures: int
    relevance: int
    save_adapters: bool
    save_predictions: bool | None
    save_features: int
    checkpoint_every: int
    workers: int | str | None
    feature_store: bool | str | None
    side_by_side: int | None
    log_paths: bool


@dataclass
class ProtocolSettings:
    """Number of episodes, and which files a run writes.

    Args:
        episodes: Number of episodes. The authors use 800 for 1-shot and 400 for 5-shot. Data with fewer tasks (a
            folder has one, the all-way protocol one per seed) run all of theirs.
        folder: Run folder. null creates one under `runs`, named after data set, way, shot, backbone, tuner, method,
            seed and what else differs from the shipped config.
        overwrite: Delete the results in the folder and start over instead of resuming.
        compare: One overlay by name or path, or several as in "[methods/baseline.yaml, methods/paper.yaml]". Each
            runs as a further method on the same episodes.
        method: Name of the method in rows, tables and file names; an overlay of `compare` may give one, too. null names
            it after its losses, and a compared method also after what else it trains otherwise.
        pictures: Number of episodes, counted from the first, for which a picture of support views and queries is saved.
        relevance: Number of episodes, counted from the first, for which a picture is saved that shows where in its
            queries the model finds the class texts, before and after the training.
        save_adapters: Save the adapter of every episode.
        save_predictions: Save the scores of every episode's queries, with small pictures of the worst errors. null
            saves those on the test images of an own folder or table.
        save_features: Number of episodes, counted from the first, whose image and text features before and after the
            training are saved.
        checkpoint_every: Steps between two checkpoints of an all-way task; a stopped run resumes at the last one.
            Episodes are short and restart from the beginning.
        workers: Number of worker processes that run episodes at the same time, through Ray (`pip install
            'dtrap[ray]'`); auto is one per GPU, or per 4 cores without a GPU. The address of a Ray cluster,
            host:6379 or ray://host:10001, uses all of its GPUs. null runs them one after the other in this process.
        feature_store: Where features of a frozen image tower, and of zero-shot tests, are kept for other episodes and
            runs: a folder; true for `dtrap/features` in the user's cache folder; false for nowhere. null is true for
            dtrap's own backbones. Results do not depend on it, and the folder may be deleted at any time.
        side_by_side: Number of episodes of a method that are trained as one batch. null means 1 on a CPU; on a GPU it
            is measured once at the start, and kept in the run folder. Rows are the same up to rounding.
        log_paths: Send local paths to loggers, too: folders in the config, and what W&B records of program, arguments,
            host and printed lines.
    """

    episodes: int = 400
    folder: str | None = None
    overwrite: bool = False
    compare: str | list[str] | None = None
    method: str | None = None
    pictures: int = 0
    relevance: int = 0
    save_adapters: bool = False
    save_predictions: bool | None = None
    save_features: int = 0
    checkpoint_every: int = 100
    workers: int | str | None = None
    feature_store: bool | str | None = None
    side_by_side: int | None = None
    log_paths: bool = False

    def __post_init__(self) -> None:
        check_at_least("--protocol.episodes", self.episodes, 1)
        check_at_least("--protocol.checkpoint_every", self.checkpoint_every, 1, "step")
        if self.side_by_side is not None:
            check_at_least("--protocol.side_by_side", self.side_by_side, 1)
        check_at_least("--protocol.pictures", self.pictures, 0)
        check_at_least("--protocol.save_features", self.save_features, 0)
        check_at_least("--protocol.relevance", self.relevance, 0)
        if self.folder is not None and (not self.folder or Path(self.folder).is_file()):
            found = f"'{self.folder}', a file" if self.folder else "empty"
            raise DtrapError(f"--protocol.folder is {found}; expected a folder: --protocol.folder runs/my_run")
        if isinstance(self.feature_store, str) and (not self.feature_store or Path(self.feature_store).is_file()):
            found = f"'{self.feature_store}', a file" if self.feature_store else "empty"
            raise DtrapError(f"--protocol.feature_store is {found}; expected true, false or a folder.")
        if self.method is not None:
            check_method_name(self.method)
        if self.workers is not None:
            parse_workers(self.workers)

    @property
    def overlays(self) -> list[str]:
        """The overlays of `compare` as a list."""
        if self.compare is None:
            return []
        return [self.compare] if isinstance(self.compare, str) else list(self.compare)


def check_method_name(name: str) -> None:
    """Raise a DtrapError unless files can be named after the method."""
    if not name.strip() or "/" in name:
        raise DtrapError(f"--protocol.method is '{name}'; expected a name without '/': files are named after it.")
