"""Oxford-IIIT Pet: breeds of cats and dogs."""

from __future__ import annotations

from pathlib import Path

from ...errors import DtrapError
from ..findings import Findings
from ..published import Published
from .base import CoOpDataModule
from .releases import numbered_lines
from .splits import Row, Split, draw_validation


class OxfordPetsDataModule(CoOpDataModule):
    """Episodes of Oxford-IIIT Pet: 7,349 images in 37 classes.

    Format: `images/<Breed>_<number>.jpg` and `split_zhou_OxfordPets.json` in `oxford_pets/` (`OxfordPets/`,
    `oxford-iiit-pet/`). Without the split file: `annotations/trainval.txt`, a fifth of each class for validation, and
    `annotations/test.txt`, both with lines `<Breed>_<number> <label from 1> ...`.

    Source: https://www.robots.ox.ac.uk/~vgg/data/pets/. Parkhi et al., "Cats and Dogs", CVPR 2012. License: CC BY-SA
    4.0.
    """

    title = "OxfordPets"
    references = ("parkhi2012pets", "zhou2022coop")
    default_template = "a photo of a {}, a type of pet."
    folders = ("oxford_pets", "OxfordPets", "oxford-iiit-pet")
    split_file = "split_zhou_OxfordPets.json"
    members = ("Abyssinian_1.jpg", "pug_1.jpg")
    signs = ("annotations/trainval.txt",)
    published = Published(37, train=2944, val=736, test=3669)

    def make_split(self, folder: Path, images: Path, findings: Findings) -> Split:
        """Take the published test images; a fifth of each class of the others is for validation."""
        files = [self.file_in(folder, f"annotations/{name}.txt") for name in ("trainval", "test")]
        return draw_validation(*map(_read_annotations, files))


def _read_annotations(path: Path) -> list[Row]:
    rows = []
    for place, line in numbered_lines(path):
        image, *numbers = line.split()
        breed = image.rpartition("_")[0].lower().replace("_", " ")
        if not breed or not numbers or not numbers[0].isdecimal() or int(numbers[0]) < 1:
            raise DtrapError(f"{place}: expected '<Breed>_<number> <label from 1> ...', found '{line}'. Correct it.")
        rows.append(Row(f"{image}.jpg", int(numbers[0]) - 1, breed))
    return rows
