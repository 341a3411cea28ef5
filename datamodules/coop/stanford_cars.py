"""Stanford Cars: makes, models and years."""

from __future__ import annotations

from pathlib import Path

from ...errors import DtrapError
from ..findings import Findings
from ..published import Published
from .base import CoOpDataModule
from .releases import read_mat
from .splits import Row, Split, draw_validation


class StanfordCarsDataModule(CoOpDataModule):
    """Episodes of Stanford Cars: 16,185 images in 196 classes such as "2012 BMW X6 SUV".

    Format: `cars_train/00001.jpg`, `cars_test/00001.jpg` and `split_zhou_StanfordCars.json` in `stanford_cars/`
    (`StanfordCars/`). Without the split file: `devkit/cars_train_annos.mat`, a fifth of each class for validation,
    `cars_test_annos_withlabels.mat` and `devkit/cars_meta.mat`, with the year moved to the front of a name.

    Source: Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR 2013; the original address
    (https://ai.stanford.edu/~jkrause/cars/car_dataset.html) is not always available. License: non-commercial research.
    """

    title = "StanfordCars"
    references = ("krause2013cars", "zhou2022coop")
    folders = ("stanford_cars", "StanfordCars")
    split_file = "split_zhou_StanfordCars.json"
    image_folder = ""
    members = ("cars_train", "cars_test")
    signs = ("cars_train", "cars_test")
    published = Published(196, train=6509, val=1635, test=8041)

    def make_split(self, folder: Path, images: Path, findings: Findings) -> Split:
        """Take the published test images; a fifth of each class of the others is for validation."""
        names = list(read_mat(self.file_in(folder, "devkit/cars_meta.mat"), "class_names"))
        training = self.file_in(folder, "devkit/cars_train_annos.mat")
        test = self.file_in(folder, "cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")
        files = ((training, "cars_train"), (test, "cars_test"))
        return draw_validation(*(_read_annotations(file, images, names) for file, images in files))


def _read_annotations(path: Path, images: str, names: list[str]) -> list[Row]:
    rows = []
    for number, annotation in enumerate(read_mat(path, "annotations"), 1):
        label = int(annotation.get("class", 0)) - 1
        if not 0 <= label < len(names):
            raise DtrapError(
                f"{path}, annotation {number}: expected a class from 1 to {len(names)}, found "
                f"{annotation.get('class', 'none')}. Use the official file with labels."
            )
        *model, year = names[label].split(" ")
        rows.append(Row(f"{images}/{annotation['fname']}", label, " ".join([year, *model])))
    return rows
