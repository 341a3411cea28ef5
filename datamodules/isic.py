"""ISIC 2018 task 3: dermatoscopic images of skin lesions."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from ..errors import DtrapError
from .few_shot import FewShotDataModule, ImageIndex
from .images import list_images
from .index import locate
from .tables import check_columns, check_unique, read_table

CLASS_NAMES = {
    "MEL": "Melanoma",
    "NV": "Melanocytic Nevus",
    "BCC": "Basal Cell Carcinoma",
    "AKIEC": "Actinic Keratosis",
    "BKL": "Benign Keratosis",
    "DF": "Dermatofibroma",
    "VASC": "Vascular Lesion",
}

GROUND_TRUTH, IMAGES = "ISIC2018_Task3_Training_GroundTruth", "ISIC2018_Task3_Training_Input"
_FOLDERS = ("", "ISIC")
TABLES = tuple(str(Path(f, g, f"{GROUND_TRUTH}.csv")) for f in _FOLDERS for g in (GROUND_TRUTH, ""))
IMAGE_FOLDERS = tuple(str(Path(f, IMAGES)) for f in _FOLDERS)


class ISICDataModule(FewShotDataModule):
    """Episodes of ISIC 2018 task 3 (HAM10000): 10,015 images in 7 classes, JPEG of 600 x 450 pixels.

    Format: `ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv` (image, then the
        one-hot
    columns MEL, NV, BCC, AKIEC, BKL, DF, VASC) and `ISIC2018_Task3_Training_Input/<image>.jpg`, under the
    root or its sub-folder ISIC. Extra files such as the metadata table are ignored.

    Source: https://challenge.isic-archive.com/data/#2018 (training data and ground truth of task 3). Tschandl
        et
    al., "The HAM10000 dataset", Scientific Data 2018. Licence: CC BY-NC 4.0.
    """

    title = "ISIC"
    published: ClassVar[dict[str, int]] = {"all": 10015}
    class_count: ClassVar[int] = 7

    def scan(self) -> ImageIndex:
        """Read the ground-truth table and the names of the image files."""
        table = locate(self.root, TABLES, self.title, "ground-truth table")
        images = locate(self.root, IMAGE_FOLDERS, self.title, "image folder")

        files = {Path(path).stem: path for path in list_images(images)}
        names, labels = _read_ground_truth(table)
        present = [name in files for name in names]
        return ImageIndex(
            paths=[files[name] for name, here in zip(names, present, strict=True) if here],
            labels=[label for label, here in zip(labels, present, strict=True) if here],
            class_names=list(CLASS_NAMES.values()),
            roots=(str(images),),
            missing=tuple(str(images / f"{name}.jpg") for name, here in zip(names, present, strict=True) if not here),
        )


def _read_ground_truth(path: Path) -> tuple[list[str], list[int]]:
    """Image names and labels, sorted by name."""
    frame = read_table(path, dtype={"image": str})
    check_columns(path, list(frame.columns), ["image", *CLASS_NAMES])
    check_unique(path, frame["image"])
    values = frame[list(CLASS_NAMES)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(~(np.isin(values, (0.0, 1.0)).all(axis=1) & (values.sum(axis=1) == 1)))
    if len(wrong):
        row = frame.iloc[wrong[0]]
        raise DtrapError(
            f"{path}, line {wrong[0] + 2} ({row['image']}): expected one 1 and otherwise 0 in "
            f"{', '.join(CLASS_NAMES)}, found {', '.join(str(row[c]) for c in CLASS_NAMES)}. "
            f"Correct the row or download the table again ({len(wrong)} such row(s))."
        )
    order = np.argsort(frame["image"].to_numpy(dtype=str), kind="stable")
    return frame["image"].iloc[order].tolist(), values.argmax(axis=1)[order].tolist()
