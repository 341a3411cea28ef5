"""Any collection with one folder per class, in both protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import DtrapError
from .all_way import AllWay
from .collection import OnFault
from .few_shot import FewShotDataModule, ImageIndex
from .index import class_folders, index_class_folders, names_of_folders, no_folder
from .views import Preprocessing


class ClassFoldersDataModule(FewShotDataModule):
    """Episodes, or the all-way protocol, of a user's own collection: `root/<class>/<images>`.

    `FolderDataModule` makes one classifier of all images; this one measures, with N-way K-shot episodes or K images of
    every class and the rest as the test set.

    Args:
        root: Folder of the class folders.
        class_names: Class name of a folder, for folders called `cls_03`; others keep the folder's name.
        way: Classes per episode W.
        shot: Support images per class K.
        query: Query images per class; 0 for none.
        views: Fixed views V of each support image, 1 (plain) to 5.
        seed: Seed of all episodes.
        episode: Number of the current episode.
        template: Class prompt with `{}` for the class name; None for "a photo of a {}.".
        preprocessing: Input size and normalisation where no backbone states its own; None for CLIP's.
        num_workers: Threads or processes that decode images; the result does not depend on it.
        bad_images: "error", or "skip" to leave unreadable images out.
        small_classes: "error", or "skip" to leave out classes with fewer than shot + query images.
        batch_size: Support rows of a training step; None for all of them.
        all_way: The all-way protocol in place of episodes.
        subset: All-way: a JSON file with the images of every seed.

    Raises:
        DtrapError: An argument is out of range, or there are no class folders.
    """

    own_images = True

    def __init__(
        self,
        root: str | Path,
        *,
        class_names: dict[str, str] | None = None,
        way: int = 5,
        shot: int = 5,
        query: int = 15,
        views: int = 5,
        seed: int = 1,
        episode: int = 0,
        template: str | None = None,
        preprocessing: Preprocessing | None = None,
        num_workers: int = 0,
        bad_images: OnFault = "error",
        small_classes: OnFault = "error",
        batch_size: int | None = None,
        all_way: AllWay | None = None,
        subset: str | Path | None = None,
    ) -> None:
        super().__init__(
            root,
            way=way,
            shot=shot,
            query=query,
            views=views,
            seed=seed,
            episode=episode,
            template=template,
            preprocessing=preprocessing,
            num_workers=num_workers,
            bad_images=bad_images,
            small_classes=small_classes,
            batch_size=batch_size,
            all_way=all_way,
            subset=subset,
        )
        self.names_of_folders = dict(class_names or {})
        self.title = self.root.resolve().name

    @property
    def scan_settings(self) -> dict[str, Any]:
        """What `scan` depends on besides the files."""
        return {**super().scan_settings, "class_names": self.names_of_folders}

    def scan(self) -> ImageIndex:
        """List the class folders."""
        if not self.root.is_dir():
            raise DtrapError(f"{self.root} {no_folder(self.root)}. Set data.root to the folder of the class folders.")
        folders = class_folders(self.root)
        if len(folders) < 2:
            raise DtrapError(f"{self.root} has {len(folders)} folder(s). Expected one folder per class, 2 or more.")
        return index_class_folders(self.root, folders, names_of_folders(self.root, folders, self.names_of_folders))
