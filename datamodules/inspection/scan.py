"""Reading a data set as far as it can be read: what a data module would refuse becomes a finding."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import DtrapError
from .. import FewShotDataModule, ImageIndex, crop_disease, eurosat
from ..coop.base import CoOpDataModule
from ..coop.splits import read_split
from ..findings import Finding, Scan, folder_faults, missing_faults, unused_folders
from ..index import DataNotFound
from .tables import scan_chestx, scan_isic

CLASS_FOLDERS = {"eurosat": list(eurosat.CLASS_NAMES), "crop_disease": crop_disease.CLASS_FOLDERS}
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
    except DataNotFound:
        return None
    except DtrapError as error:
        return Scan(ImageIndex([], [], []), [Finding(str(error))])
    faults = missing_faults(index, module.root, rows)
    notes = [Finding(note) for note in index.notes]
    if name in CLASS_FOLDERS:
        folder = Path(index.roots[0])
        faults = folder_faults(folder, CLASS_FOLDERS[name], module.root) + faults
        notes += unused_folders(folder, CLASS_FOLDERS[name], index, module.root)
    return Scan(index, faults, notes)


def _split_rows(module: FewShotDataModule) -> dict[str, str]:
    """Where the split of a set of CoOp names each image, and its class."""
    if not isinstance(module, CoOpDataModule):
        return {}
    folder = module.find_folder()
    file = module.split_in(folder)
    split, title = (read_split(file), file.name) if file else (module.make_split(folder), "split")
    images = folder / module.image_folder
    return {
        os.path.join(images, *row.path.split("/")): f"{title}, '{part}' row {number} ({row.name})"
        for part, rows in split.items()
        for number, row in enumerate(rows, 1)
    }
