"""Recognize a folder whose sub-folders train, val and test have the class folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from ..errors import DtrapError, nearest
from .index import ImageIndex, class_folders, index_class_folders, join, listing, names_of_folders, normal
from .places import Place, is_image, list_place, unwrapped
from .walk import walk

# By split: what its folder is called, in any case. `valid` is Roboflow's.
NAMES = {
    "train": ("train", "training", "train_set", "training_set", "trainset", "train_data", "training_data"),
    "val": ("val", "valid", "validation", "dev", "val_set", "validation_set", "valset", "val_data", "validation_data"),
    "test": ("test", "testing", "test_set", "testing_set", "testset", "test_data", "eval", "evaluation"),
}
AS_CLASSES = "--data.split_folders false"


@dataclass(frozen=True)
class SplitFolders:
    """Folders of the class folders of each split.

    Attributes:
        train: Training images.
        val: Validation images; None without them.
        test: Test images; None without them.
        unused: Names of the folders next to them that are not used.
    """

    train: Path
    val: Path | None = None
    test: Path | None = None
    unused: tuple[str, ...] = ()

    @property
    def folders(self) -> dict[str, Path]:
        """The folders that there are, by split."""
        found = {"train": self.train, "val": self.val, "test": self.test}
        return {split: folder for split, folder in found.items() if folder is not None}


def find_splits(root: Path) -> SplitFolders | None:
    """Return the folders of training, validation and test images in a folder, or in the only folder in it.

    A folder is a split if it is called like one and has folders in it; there must be one for training.

    Returns:
        None if the folders are classes.

    Raises:
        DtrapError: It cannot be told whether the folders are splits or classes, or what each of them is.
    """
    place = list_place(root)
    for _ in range(2):  # folders around the splits
        if len(place.folders) != 1 or _split_of(place.folders[0]):
            break
        place = list_place(place.path / place.folders[0])
    named: dict[str, list[str]] = {split: [n for n in place.folders if _split_of(n) == split] for split in NAMES}
    filled = {split: [name for name in names if _class_folders(place, name)] for split, names in named.items()}
    others = [name for name in place.folders if _split_of(name) is None]
    for split, names in filled.items():
        if len(names) > 1 and filled["train"]:
            raise DtrapError(
                f"{place.path}: the folders {listing(names)} may both be the {split} split. Rename or move all but "
                f"one; if they are classes, give {AS_CLASSES}."
            )
    if not filled["train"]:
        _refuse_half_splits(place, filled, others)
        return _alike(place)
    if not _is_split(place, filled, named):
        return _alike(place)
    in_use = [name for names in filled.values() for name in names]
    unused = [name for name in place.folders if name not in in_use]
    with_images = [name for name in others if _has_images(place.path / name)]
    if with_images:
        raise DtrapError(
            f"{place.path} has the folders {listing(in_use)}, which are called like splits, and next to them "
            f"{listing(with_images)} with images. Move these out of it; or, if all of them are classes, give "
            f"{AS_CLASSES}."
        )
    folders = {split: unwrapped(place.path / names[0]) for split, names in filled.items() if names}
    return SplitFolders(folders["train"], folders.get("val"), folders.get("test"), tuple(unused))


def _split_of(name: str) -> str | None:
    plain = re.sub(r"[\s-]+", "_", name.casefold())
    return next((split for split, names in NAMES.items() if plain in names), None)


def _class_folders(place: Place, name: str) -> Sequence[str]:
    return list_place(unwrapped(place.path / name)).folders


def _is_split(place: Place, filled: dict[str, list[str]], named: dict[str, list[str]]) -> bool:
    """Return whether the folder called train is a split: a class may have that name, and sub-folders, too."""
    train = filled["train"][0]
    rest = [name for split in ("val", "test") for name in filled[split]]
    if not rest:  # alone, or next to a test folder without classes
        called = any(named["val"] + named["test"])
        return not _holds_images(place.path / train) and (called or len(place.folders) == 1)
    folders = {*_class_folders(place, train)}
    shared = any(not folders.isdisjoint(_class_folders(place, name)) for name in rest)
    return shared or not any(_holds_images(place.path / name) for name in (train, *rest))


def _refuse_half_splits(place: Place, filled: dict[str, list[str]], others: Sequence[str]) -> None:
    """Raise a DtrapError where there are test or validation images, and the training images are elsewhere."""
    for name in (*filled["test"], *filled["val"]):
        shared = sorted({*_class_folders(place, name)} & {*others})
        if shared:
            raise DtrapError(
                f"{place.path / name} has folders called like the classes next to it: {listing(shared)}. Move it out "
                f"of {place.path} and give it as --data.query_root FOLDER; if '{name}' is a class, give {AS_CLASSES}."
            )
    found = [*filled["test"], *filled["val"]]
    if found and not others and not any(_holds_images(place.path / name) for name in place.folders):
        raise DtrapError(
            f"{place.path} has no folder with training images: found {listing(place.folders)}. Call it 'train', or "
            f"give the folder of the class folders: --data.root {quote(str(place.path / found[0]))}. If these are "
            f"classes, give {AS_CLASSES}."
        )


def _alike(place: Place) -> SplitFolders | None:
    """Return folders such as `seg_train` and `seg_test` with the same class folders, else None."""
    words = {name: re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).casefold()) for name in place.folders}
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        called = [name for name in place.folders if not {*words[name]}.isdisjoint(names)]
        paths = [unwrapped(place.path / name) for name in called]
        paths = [path for path in paths if list_place(path).folders and not _holds_images(path)]
        if len(paths) == 1:
            found[split] = paths[0]
    if "train" not in found or len(found) < 2 or len({*found.values()}) < len(found):
        return None
    classes = {*list_place(found["train"]).folders}
    if any(classes.isdisjoint(list_place(path).folders) for path in found.values()):
        return None
    return SplitFolders(found["train"], found.get("val"), found.get("test"))


def _holds_images(folder: Path) -> bool:
    return any(map(is_image, list_place(folder).files))


def _has_images(folder: Path) -> bool:
    """Return whether a folder or a folder in it has images."""
    return _holds_images(folder) or any(_holds_images(folder / name) for name in list_place(folder).folders)


def index_splits(root: Path, found: SplitFolders, names: Mapping[str, str], *, skip_unknown: bool) -> ImageIndex:
    """Return the index of the images of all splits, those of the training first.

    A class folder without a folder of the same name in the training folder may be spelled in another case there.

    Args:
        root: What the paths are relative to.
        found: The folders of the splits.
        names: Class names of folders.
        skip_unknown: Whether class folders that the training folder lacks are left out, instead of an error.

    Raises:
        DtrapError: Such a folder is not to be left out, or a name of `names` is not that of a folder.
    """
    classes = class_folders(found.train)
    class_names = names_of_folders(found.train, classes, names)
    index = ImageIndex([], [], class_names, roots=(str(root),), splits=[])
    counts = []
    for split, folder in found.folders.items():
        there = class_folders(folder)
        unknown = [name for name in there if _same(name, classes) is None]
        notes = (
            [f"{folder}: class folders that {found.train} lacks are left out: {listing(unknown)}"] if unknown else []
        )
        if unknown and not skip_unknown:
            raise DtrapError(
                f"{folder / unknown[0]}: {found.train} has no class folder '{unknown[0]}'."
                f"{nearest(unknown[0], classes)} Rename or remove it, or leave out such folders: "
                "--data.small_classes skip."
            )
        called = {_same(name, classes): name for name in there}
        beside = walk(folder, recursive=False)
        if beside.images:
            notes.append(f"{len(beside.images):,} images next to the class folders not used: {beside.images[0]}")
            beside.images = []
        part = index_class_folders(folder, [called.get(name, name) for name in classes], class_names, beside)
        counts.append(f"{split} {len(part.paths):,}")
        texts = tuple(f"{folder.name}: {note}" for note in part.notes)
        index = join(index, part, notes=(*index.notes, *notes, *texts))
        index = replace(index, splits=[*(index.splits or ()), *[split] * len(part.paths)])
    return replace(index, notes=(_recognized(found, counts), *index.notes))


def _same(name: str, classes: Sequence[str]) -> str | None:
    """Return the class folder with a name, up to Unicode's form, or else up to case; None if there is none."""
    exact = [found for found in classes if normal(found) == normal(name)]
    folded = [found for found in classes if normal(found).casefold() == normal(name).casefold()]
    return exact[0] if exact else folded[0] if len(folded) == 1 else None


def _recognized(found: SplitFolders, counts: Sequence[str]) -> str:
    """Return what was recognized, and what the images are used for."""
    folders = found.folders
    text = f"split folders {', '.join(folder.name for folder in folders.values())}: {', '.join(counts)} images"
    if found.val is not None and found.test is None:
        text += f". There is no test folder; to test on {found.val.name}: --data.query_root {quote(str(found.val))}"
    if found.unused:
        text += f". Not used: {listing(found.unused)}"
    return text
