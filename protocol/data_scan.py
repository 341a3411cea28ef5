"""Reading a data set as far as it can be read: what a data module would refuse becomes a finding."""

from __future__ import annotations

import os
from pathlib import Path

from ..datamodules import FewShotDataModule, ImageIndex, eurosat
from ..datamodules.coop.base import CoOpDataModule
from ..datamodules.coop.splits import read_split
from ..errors import DtrapError
from .data_findings import Finding, Scan, folder_faults, missing_faults
from .data_tables import scan_chestx, scan_isic

CROP_DISEASE_FOLDERS = [
    f"{crop}___{state}"
    for crop, states in {
        "Apple": ["Apple_scab", "Black_rot", "Cedar_apple_rust", "healthy"],
        "Blueberry": ["healthy"],
        "Cherry_(including_sour)": ["Powdery_mildew", "healthy"],
        "Corn_(maize)": [
            "Cercospora_leaf_spot Gray_leaf_spot",
            "Common_rust_",
            "Northern_Leaf_Blight",
            "healthy",
        ],
        "Grape": ["Black_rot", "Esca_(Black_Measles)", "Leaf_blight_(Isariopsis_Leaf_Spot)", "healthy"],
        "Orange": ["Haunglongbing_(Citrus_greening)"],
        "Peach": ["Bacterial_spot", "healthy"],
        "Pepper,_bell": ["Bacterial_spot", "healthy"],
        "Potato": ["Early_blight", "Late_blight", "healthy"],
        "Raspberry": ["healthy"],
        "Soybean": ["healthy"],
        "Squash": ["Powdery_mildew"],
        "Strawberry": ["Leaf_scorch", "healthy"],
        "Tomato": [
            "Bacterial_spot",
            "Early_blight",
            "Late_blight",
            "Leaf_Mold",
            "Septoria_leaf_spot",
            "Spider_mites Two-spotted_spider_mite",
            "Target_Spot",
            "Tomato_Yellow_Leaf_Curl_Virus",
            "Tomato_mosaic_virus",
            "healthy",
        ],
    }.items()
    for state in states
]
CLASS_FOLDERS = {"eurosat": list(eurosat.CLASS_NAMES), "crop_disease": CROP_DISEASE_FOLDERS}


TABLES = {"isic": scan_isic, "chestx": scan_chestx}


def scan(name: str, module: FewShotDataModule) -> Scan | None:
    """Read a set of the catalogue without stopping at a fault; None where neither its folder nor table is there.

    Args:
        name: Name of the set in the catalogue.
        module: Its data module, made with `bad_images` and `small_classes` "skip".
    """
    if name in TABLES:
        return TABLES[name](module.root)
    try:
        index = module.scan()
        rows = _split_rows(module) if index.missing else {}
    except DtrapError as error:
        return None if "Looked for: " in str(error) else Scan(ImageIndex([], [], []), [Finding(str(error))])
    faults = missing_faults(index, module.root, rows)
    if name in CLASS_FOLDERS:
        faults = folder_faults(Path(index.roots[0]), CLASS_FOLDERS[name], module.root) + faults
    return Scan(index, faults, [Finding(note) for note in index.notes])


def _split_rows(module: FewShotDataModule) -> dict[str, str]:
    """Where the split of a set of CoOp names each image, and its class."""
    if not isinstance(module, CoOpDataModule):
        return {}
    folder = module.find_folder()
    file = module._split_in(folder)
    split, title = (read_split(file), file.name) if file else (module.make_split(folder), "split")
    images = folder / module.image_folder
    return {
        os.path.join(images, *row.path.split("/")): f"{title}, '{part}' row {number} ({row.name})"
        for part, rows in split.items()
        for number, row in enumerate(rows, 1)
    }
