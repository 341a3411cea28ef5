"""SUN397: scenes."""

from __future__ import annotations

from pathlib import Path

from ...errors import DtrapError, nearest
from ..findings import Findings
from ..published import Published
from ..walk import list_images
from .base import CoOpDataModule
from .releases import numbered_lines
from .splits import Row, Split, draw_split, draw_validation


class SUN397DataModule(CoOpDataModule):
    """Episodes of SUN397 as CoOp uses it: 39,700 of its 108,754 images in 397 classes.

    Format: `SUN397/<letter>/<class>/sun_<id>.jpg` (or `<class>/<indoor or outdoor>/`) and `split_zhou_SUN397.json` in
    `sun397/` (`SUN397/`). Without the split file: `ClassName.txt` (one folder per line, such as `/a/abbey`) with
    `Training_01.txt`, a fifth of each class for validation, and `Testing_01.txt`, in the folder of the set or in its
    `Partitions/`; without these two lists all images, split into 50%, 20% and 30%. `/a/apse/indoor` is the class
    "indoor apse".

    Source: https://vision.princeton.edu/projects/2010/SUN/. Xiao et al., "SUN Database: Large-scale Scene Recognition
    from Abbey to Zoo", CVPR 2010. License: none given; the pictures belong to their owners.
    """

    title = "SUN397"
    references = ("xiao2010sun", "zhou2022coop")
    folders = ("sun397", "SUN397")
    split_file = "split_zhou_SUN397.json"
    image_folder = "SUN397"
    members = ("a", "y")
    signs = ("ClassName.txt", "Partitions/ClassName.txt", "SUN397/ClassName.txt")
    published = Published(397, train=15_880, val=3970, test=19_850)

    def make_split(self, folder: Path, images: Path, findings: Findings) -> Split:
        """Take the published test images of the first partition, or split all images."""
        class_list = self.file_in(folder, *self.signs)
        classes = {line.strip("/"): number for number, (_, line) in enumerate(numbered_lines(class_list))}
        for place in (folder, folder / "Partitions"):
            files = [place / f"{name}_01.txt" for name in ("Training", "Testing")]
            if all(file.is_file() for file in files):
                return draw_validation(*(_read_partition(file, classes) for file in files))
        listed = {name: list_images(images / name) if (images / name).is_dir() else [] for name in classes}
        by_class = {
            _class_name(name): [f"{name}/{Path(path).name}" for path in paths] for name, paths in listed.items()
        }
        return draw_split(self.with_images(by_class, findings))


def _class_name(folder: str) -> str:
    """Return the class name of a folder such as `a/apse/indoor`."""
    return " ".join(reversed(folder.split("/")[1:])).replace("_", " ")


def _read_partition(path: Path, classes: dict[str, int]) -> list[Row]:
    rows = []
    for place, line in numbered_lines(path):
        image = line.strip("/")
        folder = image.rpartition("/")[0]
        if folder not in classes:
            raise DtrapError(f"{place}: '{folder}' is not in ClassName.txt.{nearest(folder, classes)} Correct it.")
        rows.append(Row(image, classes[folder], _class_name(folder)))
    return rows
