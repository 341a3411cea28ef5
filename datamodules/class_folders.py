"""Any collection with one folder per class, in both protocols."""

from __future__ import annotations

from pathlib import Path

from ..errors import DtrapError
from ..keywords import Unpack
from .few_shot import FewShotDataModule, FewShotOptions, ImageIndex
from .index import class_folders, index_class_folders, names_of_folders, no_folder


class ClassFoldersDataModule(FewShotDataModule):
    """Episodes, or the all-way protocol, of a user's own collection: `root/<class>/<images>`.

    `FolderDataModule` makes one classifier of all images; this one measures, with N-way K-shot episodes or K images of
    every class and the rest as the test set.

    Args:
        root: Folder of the class folders.
        class_names: Class name of a folder, for folders called `cls_03`; others keep the folder's name.
        **options: Arguments of `FewShotDataModule`.

    Raises:
        DtrapError: An argument is out of range, or there are no class folders.
    """

    own_images = True

    def __init__(
        self,
        root: str | Path,
        *,
        class_names: dict[str, str] | None = None,
        **options: Unpack[FewShotOptions],
    ) -> None:
        super().__init__(root, **options)
        self.names_of_folders = dict(class_names or {})
        self.title = self.root.resolve().name

    def scan(self) -> ImageIndex:
        """List the class folders."""
        if not self.root.is_dir():
            raise DtrapError(f"{self.root} {no_folder(self.root)}. Set data.root to the folder of the class folders.")
        folders = class_folders(self.root)
        if len(folders) < 2:
            raise DtrapError(f"{self.root} has {len(folders)} folder(s). Expected one folder per class, 2 or more.")
        return index_class_folders(self.root, folders, names_of_folders(self.root, folders, self.names_of_folders))
