"""ImageNet (ILSVRC 2012): objects and animals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from ...errors import DtrapError, nearest
from ..findings import COMPLETE, HINTS, Finding, Findings, counted, missing_folders, relative
from ..index import ImageIndex, class_folders, index_class_folders, join, no_folder
from ..places import FolderTree, list_place, resolve
from ..published import Published
from .base import CoOpDataModule
from .releases import numbered_lines

# CLIP's list calls two pairs of classes "sunglasses" and "missile"; these are the words of WordNet.
OTHER_NAMES = {"n04355933": "sunglass", "n04008634": "projectile"}
# What other lists call alike, such as Keras's, and how CLIP tells the classes apart.
_CLEAR_NAMES = {
    **OTHER_NAMES,
    "n02113186": "Cardigan Welsh corgi",
    "n02012849": "crane bird",
    "n03126707": "construction crane",
    "n03710637": "tights",
    "n03710721": "one-piece bathing suit",
}
_IMAGES = ("images", "", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_PARTS = ("train", "val")


class ImageNetDataModule(CoOpDataModule):
    """Episodes of ImageNet: 1,281,167 training images and 50,000 test images (its validation set) in 1,000 classes.

    Format: `images/train/<wnid>/` and `images/val/<wnid>/` (CLIP-LoRA has both without `images/`) and CoOp's
    `classnames.txt` (lines `<wnid> <class name>`, CLIP's names) in `imagenet/` (`ImageNet/`). The classes are those
    of `classnames.txt`, in the order of their wnid. There is no published validation split. CLIP's list has two pairs
    of classes with the same name; one of each pair gets its WordNet name, so that their prompts differ.

    Source: https://image-net.org. Deng et al., "ImageNet: A Large-Scale Hierarchical Image Database", CVPR 2009;
    Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015. License: non-commercial
    research and education.
    """

    title = "ImageNet"
    references = ("russakovsky2015imagenet", "zhou2022coop")
    folders = ("imagenet", "ImageNet")
    signs = ("classnames.txt", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
    published = Published(1000, train=1_281_167, test=50_000)

    def read(self, findings: Findings) -> ImageIndex:
        """List the class folders of both parts, each once."""
        folder = self.find_folder()
        names = self._class_names(folder, findings)
        images = next((folder / name for name in _IMAGES if (folder / name / "train").is_dir()), None)
        images = images or self._find_parts(folder) or folder / "images"
        if images not in [folder / name for name in _IMAGES]:
            findings.note(Finding(f"the images are read from {images}"))
        for part in _PARTS:
            self._check_folders(images / part, names, findings)
        train, test = (index_class_folders(images / part, list(names), list(names.values())) for part in _PARTS)
        splits = ["train"] * len(train.paths) + ["test"] * len(test.paths)
        return join(train, test, roots=(str(images),), splits=splits)

    def _class_names(self, folder: Path, findings: Findings) -> dict[str, str]:
        """Return the class name of each wnid, sorted by wnid, and note the names that were replaced."""
        file = resolve(list_place(folder), "classnames.txt")
        if file is None:
            raise DtrapError(
                f"{self.title}: {folder} has no classnames.txt. Get CoOp's (link: DATASETS.md of "
                "https://github.com/KaiyangZhou/CoOp) and put it there."
            )
        names: dict[str, str] = {}
        lines: dict[str, str] = {}
        for place, line in numbered_lines(file):
            wnid, _, name = line.partition(" ")
            name, lines[wnid] = name.strip(), place.rpartition(", ")[2]
            if not name or wnid in names:
                expected = f"one line for {wnid}, this is the second" if wnid in names else "'<wnid> <class name>'"
                raise DtrapError(f"{place}: expected {expected}, found '{line}'. Correct the line.")
            names[wnid] = name.replace("_", " ")
        counts = Counter(names.values())
        for wnid, other in OTHER_NAMES.items():
            if counts[names.get(wnid, "")] > 1:
                findings.note(Finding(f"{wnid} '{names[wnid]}' is called '{other}': another class has its name"))
                names[wnid] = other
        _check_names(file, names, lines)
        return dict(sorted(names.items()))

    @staticmethod
    def _find_parts(folder: Path) -> Path | None:
        """Return the folder of `train` and `val` some levels lower."""
        places = FolderTree(folder).places
        return next((place.path for place in places if set(_PARTS).issubset(place.folders)), None)

    def _check_folders(self, part: Path, wnids: Collection[str], findings: Findings) -> None:
        if not part.is_dir():
            raise DtrapError(f"{self.title}: {part} {no_folder(part)}. Unpack the images there, one folder per class.")
        place = list_place(part)
        if not place.folders and place.files:
            raise DtrapError(
                f"{self.title}: {part} has {len(place.files):,} files, such as {place.files[0]}, and no class folders. "
                "Unpack archives there, and move the images into folders by wnid (valprep.sh of "
                "https://github.com/soumith/imagenetloader.torch does it for val)."
            )
        others = [name for name in class_folders(part) if name not in wnids]
        near = wnids if len(others) <= HINTS else ()
        cases = [f"{relative(part / name, self.root)}: not in classnames.txt.{nearest(name, near)}" for name in others]
        findings.fault(counted(cases, "folder is not a class", "folders are not classes"), "Rename or remove it")
        remedy = f"{COMPLETE} (images of val belong into class folders as well)"
        findings.fault(missing_folders(part, wnids, self.root), remedy, "small_classes")


def _check_names(file: Path, names: Mapping[str, str], lines: Mapping[str, str]) -> None:
    """Raise a DtrapError where names differ in case and spaces only, which give the same prompt.

    Args:
        file: The list.
        names: Class name of each wnid.
        lines: Line of each wnid.
    """
    first: dict[str, str] = {}
    for wnid, name in names.items():
        other = first.setdefault(" ".join(name.casefold().split()), wnid)
        if other == wnid:
            continue
        alike = " and ".join(f"{lines[owner]} ({owner} '{names[owner]}')" for owner in (other, wnid))
        owner = next((owner for owner in (other, wnid) if owner in _CLEAR_NAMES), None)
        if owner is None:
            remedy = f"Give one of them another name in {lines[wnid]}, for example: {wnid} {name} ({wnid})"
        else:
            remedy = f"Write in {lines[owner]}: {owner} {_CLEAR_NAMES[owner]}"
        raise DtrapError(f"{file}: {alike} give the same prompt. {remedy}")
