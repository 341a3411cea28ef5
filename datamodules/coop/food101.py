"""Food-101: dishes."""

from __future__ import annotations

from ..published import Published
from .base import CoOpDataModule


class Food101DataModule(CoOpDataModule):
    """Episodes of Food-101 with CoOp's split: 101,000 images in 101 classes.

    Format: `images/<class>/<number>.jpg` and `split_zhou_Food101.json` in `food-101/` (`Food101/`). Without the split
    file: the class folders; the split of the release (`meta/`) is ignored.

    Source: https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/. Bossard et al., "Food-101 - Mining
    Discriminative Components with Random Forests", ECCV 2014. License: research; the pictures belong to Foodspotting.
    """

    title = "Food101"
    references = ("bossard2014food", "zhou2022coop")
    default_template = "a photo of {}, a type of food."
    folders = ("food-101", "Food101")
    split_file = "split_zhou_Food101.json"
    members = ("apple_pie", "waffles")
    signs = ("images/apple_pie", "meta/classes.txt")
    published = Published(101, train=50_500, val=20_200, test=30_300)
