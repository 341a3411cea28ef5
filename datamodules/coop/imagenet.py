"""ImageNet (ILSVRC 2012): objects and animals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from ...errors import DtrapError, nearest
from ..findings import COMPLETE, HINTS, Finding, Findings, counted, missing_folders, relative
from ..index import ImageIndex, class_folders, index_class_folders, join, no_folder
from ..published import Published
from .base import CoOpDataModule
from .releases import numbered_lines

# CLIP's list calls two pairs of classes "sunglasses" and "missile"; these are the words of WordNet.
OTHER_NAMES = {"n04355933": "sunglass", "n04008634": "projectile"}
_IMAGES = ("images", "", "ILSVRC/Data/CLS-LOC")
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
    folders = ("imagenet", "ImageNet")
    signs = ("classnames.txt",)
    published = Published(1000, train=1_281_167, test=50_000)

    def read(self, findings: Findings) -> ImageIndex:
        """List the class folders of both parts, each once."""
        folder = self.find_folder()
        names = self._class_names(folder, findings)
        images = next((folder / name for name in _IMAGES if (folder / name / "train").is_dir()), folder / "images")
        for part in _PARTS:
            self._check_folders(images / part, names, findings)
        train, test = (index_class_folders(images / part, list(names), list(names.values())) for part in _PARTS)
        splits = ["train"] * len(train.paths) + ["test"] * len(test.paths)
        return join(train, test, roots=(str(images),), splits=splits)

    def _class_names(self, folder: Path, findings: Findings) -> dict[str, str]:
        """Return the class name of each wnid, sorted by wnid, and note the names that were replaced."""
        file = folder / "classnames.txt"
        if not file.is_file():
            raise DtrapError(
                f"{self.title}: {folder} has no classnames.txt. Get CoOp's (link: DATASETS.md of "
                "https://github.com/KaiyangZhou/CoOp) and put it there."
            )
        names: dict[str, str] = {}
        for place, line in numbered_lines(file):
            wnid, _, name = line.partition(" ")
            if not name or wnid in names:
                expected = f"one line for {wnid}, this is the second" if wnid in names else "'<wnid> <class name>'"
                raise DtrapError(f"{place}: expected {expected}, found '{line}'. Correct the line.")
            names[wnid] = name.replace("_", " ")
        counts = Counter(names.values())
        for wnid, other in OTHER_NAMES.items():
            if counts[names.get(wnid, "")] > 1:
                findings.note(Finding(f"{wnid} '{names[wnid]}' is called '{other}': another class has its name"))
                names[wnid] = other
        twice = [name for name, count in Counter(names.values()).items() if count > 1]
        if twice:
            owners = [wnid for wnid, name in names.items() if name == twice[0]]
            raise DtrapError(f"{file}: {' and '.join(owners)} are both '{twice[0]}'. Give each a name of its own.")
        return dict(sorted(names.items()))

    def _check_folders(self, part: Path, wnids: Collection[str], findings: Findings) -> None:
        if not part.is_dir():
            raise DtrapError(f"{self.title}: {part} {no_folder(part)}. Unpack the images there, one folder per class.")
        others = [name for name in class_folders(part) if name not in wnids]
        near = wnids if len(others) <= HINTS else ()
        cases = [f"{relative(part / name, self.root)}: not in classnames.txt.{nearest(name, near)}" for name in others]
        findings.fault(counted(cases, "folder is not a class", "folders are not classes"), "Rename or remove it")
        remedy = f"{COMPLETE} (images of val belong into class folders as well)"
        findings.fault(missing_folders(part, wnids, self.root), remedy, "small_classes")
