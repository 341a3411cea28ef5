"""EuroSAT with CoOp's split and template."""

from __future__ import annotations

from ..eurosat import CLASS_NAMES
from ..published import Published
from .base import CoOpDataModule


class CoOpEuroSATDataModule(CoOpDataModule):
    """Episodes of EuroSAT (RGB) with CoOp's split: 27,000 images in 10 classes.

    Format: `2750/<class>/<class>_1.jpg` and `split_zhou_EuroSAT.json` in `eurosat/` (`EuroSAT/`). Without the split
    file: the class folders. `dtrap.datamodules.EuroSATDataModule` is the same set without a split and with the
    template "a photo of a {}.".

    Source: https://github.com/phelber/EuroSAT (EuroSAT.zip, RGB). Helber et al., "EuroSAT: A Novel Dataset and Deep
    Learning Benchmark for Land Use and Land Cover Classification", JSTARS 2019. License: MIT; Copernicus terms.
    """

    title = "EuroSAT (CoOp)"
    references = ("helber2019eurosat", "zhou2022coop")
    default_template = "a centered satellite photo of {}."
    folders = ("eurosat", "EuroSAT")
    split_file = "split_zhou_EuroSAT.json"
    image_folder = "2750"
    members = tuple(CLASS_NAMES)
    signs = ("2750", "EuroSAT_RGB/AnnualCrop", "EuroSAT/AnnualCrop", "AnnualCrop")
    renamed = CLASS_NAMES
    published = Published(10, train=13_500, val=5400, test=8100)


EuroSATDataModule = CoOpEuroSATDataModule  # the former name, in older configs and run folders
