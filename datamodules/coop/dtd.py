"""Describable Textures: what a surface looks like."""

from __future__ import annotations

from ..published import Published
from .base import CoOpDataModule


class DTDDataModule(CoOpDataModule):
    """Episodes of the Describable Textures Dataset with CoOp's split: 5,640 images in 47 classes.

    Format: `images/<class>/<class>_0001.jpg` and `split_zhou_DescribableTextures.json` in `dtd/` (`DTD/`,
    `dtd/dtd/`). Without the split file: the class folders; the ten splits of the release are ignored.

    Source: https://www.robots.ox.ac.uk/~vgg/data/dtd/. Cimpoi et al., "Describing Textures in the Wild", CVPR 2014.
    License: research.
    """

    title = "DTD"
    references = ("cimpoi2014dtd", "zhou2022coop")
    default_template = "{} texture."
    folders = ("dtd", "DTD", "dtd/dtd")
    split_file = "split_zhou_DescribableTextures.json"
    members = ("banded", "zigzagged")
    signs = ("images/banded", "labels/labels_joint_anno.txt")
    published = Published(47, train=2820, val=1128, test=1692)
