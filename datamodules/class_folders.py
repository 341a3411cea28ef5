"""The former name of the episodes of `FolderDataModule`, for older configs and run folders."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ..keywords import Unpack
from .folder import FolderDataModule, FolderOptions


class ClassFoldersDataModule(FolderDataModule):
    """`FolderDataModule` with 5 shots by default.

    Args:
        root: Folder of the class folders.
        shot: Support images per class K.
        **options: Arguments of `FolderDataModule`.
    """

    same_as: ClassVar[type] = FolderDataModule  # for the comparison of identities

    def __init__(self, root: str | Path, *, shot: int = 5, **options: Unpack[FolderOptions]) -> None:
        super().__init__(root, shot=shot, **options)
