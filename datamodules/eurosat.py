"""EuroSAT: Sentinel-2 patches of land use and land cover."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DtrapError
from .findings import COMPLETE, Findings, check_class_folders, missing_folders, note_place
from .index import ImageIndex, index_class_folders
from .places import Place, beside, best_place, list_place
from .published import Published, PublishedDataModule

CLASS_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}

_FOLDERS = ("", "2750", "source/EuroSAT", "EuroSAT", "EuroSAT/2750", "EuroSAT_RGB", "eurosat/2750")
_13_BANDS = r"all_?bands|eurosat_?ms|^tif$"  # the release of 13 bands, whose class folders have the same names
OTHER_PARTS = re.compile(rf"{_13_BANDS}|^(val|valid|validation|test)$")


def class_folders_in(place: Place) -> dict[str, str]:
    """Return the class folders of EuroSAT in a folder: the name there, in any case, of each official name."""
    found = {name.casefold(): name for name in place.folders}
    return {name: found[name.casefold()] for name in CLASS_NAMES if name.casefold() in found}


def holds_classes(place: Place) -> bool:
    """Return whether a folder has several class folders of EuroSAT."""
    return len(class_folders_in(place)) > 1


class EuroSATDataModule(PublishedDataModule):
    """Episodes of EuroSAT (RGB): 27,000 images in 10 classes, JPEG of 64 x 64 pixels.

    Format: one folder per class (AnnualCrop, Forest, ...) in the root, `2750/`, `source/EuroSAT/`, `EuroSAT/2750/` or
    `EuroSAT_RGB/`, or in one place up to five folders lower, in any case.
    `dtrap.datamodules.coop.CoOpEuroSATDataModule` is the same set with CoOp's split and template.

    Source: https://github.com/phelber/EuroSAT (EuroSAT.zip, RGB). Helber et al., "EuroSAT: A Novel Dataset and Deep
    Learning Benchmark for Land Use and Land Cover Classification", JSTARS 2019. License: MIT; Copernicus terms.
    """

    title = "EuroSAT"
    references = ("helber2019eurosat", "guo2020broader")
    published = Published(10, all=27_000)

    def read(self, findings: Findings) -> ImageIndex:
        """List the ten class folders."""
        places = [self.root / name for name in _FOLDERS]
        folder = next((place for place in places if holds_classes(list_place(place))), None)
        folder = folder or best_place(self.tree, holds_classes, self.title, OTHER_PARTS)
        folder = folder or next((place for place in places if class_folders_in(list_place(place))), None)
        if folder is None:
            raise self.nothing([str(Path(name, "AnnualCrop")) for name in _FOLDERS], "class folders")
        if re.search(_13_BANDS, folder.name, re.IGNORECASE):
            raise DtrapError(
                f"{self.title}: {folder} is the release with 13 bands (TIFF). Expected the RGB release: EuroSAT.zip or "
                "EuroSAT_RGB.zip. `dtrap data fetch eurosat ROOT` downloads it."
            )
        note_place(findings, folder, places, beside(folder, self.root, holds_classes))
        found = class_folders_in(list_place(folder))
        folders = [found.get(name, name) for name in CLASS_NAMES]
        index = index_class_folders(folder, folders, list(CLASS_NAMES.values()))
        findings.fault(missing_folders(folder, folders, self.root), COMPLETE, "small_classes")
        check_class_folders(findings, folder, index, folders, self.root)
        return index
