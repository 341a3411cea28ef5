"""EuroSAT: Sentinel-2 patches of land use and land cover."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ..errors import DtrapError
from .few_shot import FewShotDataModule, ImageIndex
from .index import index_class_folders, listing, not_found

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


class EuroSATDataModule(FewShotDataModule):
    """Episodes of EuroSAT (RGB): 27,000 JPEG images of 64 x 64 pixels in 10 classes.

    Format: one folder per class (AnnualCrop, Forest, ...), under the root, `2750/`, `source/EuroSAT/`,
    `EuroSAT/2750/` or `EuroSAT_RGB/`.

    Source: https://github.com/phelber/EuroSAT (EuroSAT.zip, RGB). Helber et al., "EuroSAT: A Novel Dataset
        and Deep
    Learning Benchmark for Land Use and Land Cover Classification", JSTARS 2019. Licence: MIT; Copernicus
    terms.
    """

    title = "EuroSAT"
    published: ClassVar[dict[str, int]] = {"all": 27000}
    class_count: ClassVar[int] = 10

    def scan(self) -> ImageIndex:
        """List the ten class folders."""
        for folder in (self.root / name for name in _FOLDERS):
            missing = [name for name in CLASS_NAMES if not (folder / name).is_dir()]
            if len(missing) < len(CLASS_NAMES):
                break
        else:
            looked_for = [str(Path(name, "AnnualCrop")) + "/ ..." for name in _FOLDERS]
            raise not_found(self.root, looked_for, self.title, "class folders")
        if missing and self.small_classes == "error":
            raise DtrapError(
                f"{self.title}: {folder} has no folder {listing(missing, 10)}. Complete the download, "
                "or leave these classes out with small_classes: skip."
            )
        return index_class_folders(folder, list(CLASS_NAMES), list(CLASS_NAMES.values()))
