"""The arguments of data modules that their subclasses pass on."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from .all_way import AllWay
from .collection import CollectionOptions


class TaskOptions(TypedDict, total=False):
    """Arguments of `FewShotDataModule` that describe episodes, except `shot`."""

    way: int
    query: int
    views: int
    seed: int
    episode: int
    batch_size: int | None
    drop_last: bool
    validation_shots: int


class EpisodeOptions(TaskOptions, total=False):
    """Arguments of `FewShotDataModule` that describe episodes."""

    shot: int


class AnyShotOptions(TaskOptions, CollectionOptions, total=False):
    """All arguments of `FewShotDataModule` except `root` and `shot`."""

    all_way: AllWay | None
    subset: str | Path | None
