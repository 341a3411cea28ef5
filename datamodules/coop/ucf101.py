"""UCF101: actions, one frame from the middle of each video."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import DtrapError
from ..findings import Findings
from ..published import Published
from .base import CoOpDataModule
from .splits import Row, Split, draw_validation

TEST_GROUPS = range(1, 8)


class UCF101DataModule(CoOpDataModule):
    """Episodes of the middle frames of UCF101: 13,320 images in 101 classes.

    Format: `UCF-101-midframes/<Class>/v_<Class>_g01_c01.jpg` and `split_zhou_UCF101.json` in `ucf101/` (`UCF101/`).
    Without the split file: the class folders, whose names are split into words at capitals (`ApplyLipstick`) or `_`.
    Groups g01 to g07 are the test images, as in the first split of the release; a fifth of each class of the others is
    for validation.

    Source: frames from CoOp's DATASETS.md; videos from https://www.crcv.ucf.edu/data/UCF101.php. Soomro et al.,
    "UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild", CRCV-TR-12-01, 2012. License: none given.
    """

    title = "UCF101"
    references = ("soomro2012ucf101", "zhou2022coop")
    default_template = "a photo of a person doing {}."
    folders = ("ucf101", "UCF101")
    split_file = "split_zhou_UCF101.json"
    image_folder = "UCF-101-midframes"
    members = ("Archery", "ApplyEyeMakeup", "Apply_Eye_Makeup")
    signs = ("UCF-101-midframes",)
    published = Published(101, train=7639, val=1898, test=3783)

    def class_name(self, folder: str) -> str:
        """Return the words of a class folder for the prompt."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder).replace("_", " ")

    def make_split(self, folder: Path, images: Path, findings: Findings) -> Split:
        """Take the test images of the first published split; a fifth of each class of the others is for validation."""
        training: list[Row] = []
        test: list[Row] = []
        for label, (name, paths) in enumerate(self.images_by_class(images, findings).items()):
            for path in paths:
                group = re.search(r"_g(\d+)_c\d+\.\w+$", path)
                if group is None:
                    where = images / path
                    raise DtrapError(f"{where}: expected a name that ends in _g<group>_c<clip>. Rename or remove it.")
                (test if int(group.group(1)) in TEST_GROUPS else training).append(Row(path, label, name))
        return draw_validation(training, test)
