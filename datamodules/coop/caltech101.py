"""Caltech101: pictures of objects."""

from __future__ import annotations

from typing import ClassVar

from ..published import Published
from .base import CoOpDataModule


class Caltech101DataModule(CoOpDataModule):
    """Episodes of Caltech101 as CoOp uses it: 8,242 images in 100 classes.

    Format: `101_ObjectCategories/<class>/image_0001.jpg` and `split_zhou_Caltech101.json` in `caltech-101/`
    (`Caltech101/`, `caltech101/`). Without the split file: the class folders except BACKGROUND_Google and Faces_easy,
    four of them renamed.

    Source: https://data.caltech.edu/records/mzrjq-6wc02. Fei-Fei et al., "Learning Generative Visual Models from Few
    Training Examples", CVPR Workshop 2004. License: CC BY 4.0.
    """

    title = "Caltech101"
    references = ("feifei2004caltech", "zhou2022coop")
    folders = ("caltech-101", "Caltech101", "caltech101")
    split_file = "split_zhou_Caltech101.json"
    image_folder = "101_ObjectCategories"
    members = ("accordion", "yin_yang")
    signs = ("101_ObjectCategories",)
    excluded = ("BACKGROUND_Google", "Faces_easy")
    renamed: ClassVar[dict[str, str]] = {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    }
    published = Published(100, train=4128, val=1649, test=2465)
