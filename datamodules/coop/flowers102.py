"""Oxford Flowers 102: flowers of the United Kingdom."""

from __future__ import annotations

from pathlib import Path

from ...errors import DtrapError
from ..findings import Findings
from ..published import Published
from .base import CoOpDataModule
from .releases import read_mat
from .splits import Split, draw_split, read_json


class Flowers102DataModule(CoOpDataModule):
    """Episodes of Oxford Flowers 102 with CoOp's split: 8,189 images in 102 classes.

    Format: `jpg/image_00001.jpg` and `split_zhou_OxfordFlowers.json` in `oxford_flowers/` (`Flower102/`,
    `flowers-102/`). Without the split file: `imagelabels.mat` (a label of each image, from 1) and CoOp's
    `cat_to_name.json` (class name of a label), split into 50%, 20% and 30%; the splits of the release are ignored.

    Source: https://www.robots.ox.ac.uk/~vgg/data/flowers/102/. Nilsback and Zisserman, "Automated Flower Classification
    over a Large Number of Classes", ICVGIP 2008. License: none given.
    """

    title = "Flowers102"
    references = ("nilsback2008flowers", "zhou2022coop")
    default_template = "a photo of a {}, a type of flower."
    folders = ("oxford_flowers", "Flower102", "flowers-102")
    split_file = "split_zhou_OxfordFlowers.json"
    image_folder = "jpg"
    members = ("image_00001.jpg",)
    signs = ("imagelabels.mat",)
    published = Published(102, train=4093, val=1633, test=2463)

    def make_split(self, folder: Path, images: Path, findings: Findings) -> Split:
        """Split every class into 50% training, 20% validation and 30% test images."""
        names_file = self.file_in(folder, "cat_to_name.json", "cat_to_name.json.gz")
        names: dict[str, str] = read_json(names_file)
        labels = read_mat(self.file_in(folder, "imagelabels.mat"), "labels").tolist()
        by_class: dict[str, list[str]] = {names[label]: [] for label in sorted(names, key=int)}
        for number, label in enumerate(labels, 1):
            if str(label) not in names:
                raise DtrapError(f"{names_file} has no name for label {label} of image {number}. Download it again.")
            by_class[names[str(label)]].append(f"image_{number:05d}.jpg")
        return draw_split(by_class)
