"""EuroSAT: Sentinel-2 patches of land use and land cover."""

from __future__ import annotations

from pathlib import Path

from .findings import COMPLETE, Findings, check_class_folders, missing_folders
from .index import ImageIndex, index_class_folders, not_found
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


class EuroSATDataModule(PublishedDataModule):
    """Episodes of EuroSAT (RGB): 27,000 images in 10 classes, JPEG of 64 x 64 pixels.

    Format: one folder per class (AnnualCrop, Forest, ...) in the root, `2750/`, `source/EuroSAT/`, `EuroSAT/2750/` or
    `EuroSAT_RGB/`. `dtrap.datamodules.coop.CoOpEuroSATDataModule` is the same set with CoOp's split and template.

    Source: https://github.com/phelber/EuroSAT (EuroSAT.zip, RGB). Helber et al., "EuroSAT: A Novel Dataset and Deep
    Learning Benchmark for Land Use and Land Cover Classification", JSTARS 2019. License: MIT; Copernicus terms.
    """

    title = "EuroSAT"
    published = Published(10, all=27_000)

    def read(self, findings: Findings) -> ImageIndex:
        """List the ten class folders."""
        places = [self.root / name for name in _FOLDERS]
        folder = next((place for place in places if any((place / name).is_dir() for name in CLASS_NAMES)), None)
        if folder is None:
            looked_for = [str(Path(name, "AnnualCrop")) + "/ ..." for name in _FOLDERS]
            raise not_found(self.root, looked_for, self.title, "class folders")
        index = index_class_folders(folder, list(CLASS_NAMES), list(CLASS_NAMES.values()))
        findings.fault(missing_folders(folder, CLASS_NAMES, self.root), COMPLETE, "small_classes")
        check_class_folders(findings, folder, index, CLASS_NAMES, self.root)
        return index
