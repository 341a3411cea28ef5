"""FGVC-Aircraft: variants of airplanes."""

from __future__ import annotations

from pathlib import Path

from ...errors import DtrapError, nearest
from ..findings import Findings
from ..published import Published
from .base import CoOpDataModule
from .releases import numbered_lines
from .splits import SPLITS, Row, Split


class FGVCAircraftDataModule(CoOpDataModule):
    """Episodes of FGVC-Aircraft: 10,000 images in 100 classes (variants such as "707-320" or "F/A-18").

    Format: `images/<id>.jpg`, `variants.txt` (one class per line) and `images_variant_{train,val,test}.txt` (lines
    `<id> <variant>`) in `fgvc_aircraft/` (`FGVCAircraft/`, `fgvc-aircraft-2013b/data/`): CoOp uses the release's own
    split.

    Source: https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/ (2013b). Maji et al., "Fine-Grained Visual
    Classification of Aircraft", arXiv 1306.5151. License: non-commercial research.
    """

    title = "FGVCAircraft"
    references = ("maji2013aircraft", "zhou2022coop")
    default_template = "a photo of a {}, a type of aircraft."
    folders = ("fgvc_aircraft", "FGVCAircraft", "fgvc-aircraft-2013b/data")
    signs = ("variants.txt", "images_variant_train.txt")
    published = Published(100, train=3334, val=3333, test=3333)

    def make_split(self, folder: Path, images: Path, findings: Findings) -> Split:
        """Read the published lists."""
        variants = {line: label for label, (_, line) in enumerate(numbered_lines(self.file_in(folder, "variants.txt")))}
        return {part: _read_list(self.file_in(folder, f"images_variant_{part}.txt"), variants) for part in SPLITS}


def _read_list(path: Path, variants: dict[str, int]) -> list[Row]:
    rows = []
    for place, line in numbered_lines(path):
        image, _, variant = line.partition(" ")
        if variant not in variants:
            raise DtrapError(f"{place}: '{variant}' is not in variants.txt.{nearest(variant, variants)} Correct it.")
        rows.append(Row(f"{image}.jpg", variants[variant], variant))
    return rows
