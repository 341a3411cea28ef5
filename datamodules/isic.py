"""ISIC 2018 task 3: dermatoscopic images of skin lesions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from .findings import Finding, Findings, counted
from .index import first_of
from .places import list_place
from .published import Published
from .tables import CORRECT, LabeledRow, PublishedTableDataModule, read_table
from .text_files import read_csv

CLASS_NAMES = {
    "MEL": "Melanoma",
    "NV": "Melanocytic Nevus",
    "BCC": "Basal Cell Carcinoma",
    "AKIEC": "Actinic Keratosis",
    "BKL": "Benign Keratosis",
    "DF": "Dermatofibroma",
    "VASC": "Vascular Lesion",
}

_GROUND_TRUTH, _IMAGES = "ISIC2018_Task3_Training_GroundTruth", "ISIC2018_Task3_Training_Input"
_FOLDERS = ("", "ISIC")
_LESION = "lesion_id"
_GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")  # of Kaggle and Dataverse


class ISICDataModule(PublishedTableDataModule):
    """Episodes of ISIC 2018 task 3 (HAM10000): 10,015 images in 7 classes, JPEG of 600 x 450 pixels.

    Format: `ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv` (image, then the one-hot
    columns MEL, NV, BCC, AKIEC, BKL, DF, VASC) and `ISIC2018_Task3_Training_Input/<image>.jpg`, under the root or its
    subfolder ISIC or up to five folders lower. Without this table, `HAM10000_metadata.csv` (image_id, dx) is read. The
    images may be in several folders, such as `HAM10000_images_part_1/` and `_part_2/`.

    Source: https://challenge.isic-archive.com/data/#2018 (training data and ground truth of task 3). Tschandl et al.,
    "The HAM10000 dataset", Scientific Data 2018. License: CC BY-NC 4.0.
    """

    title = "ISIC"
    references = ("tschandl2018ham10000", "codella2019isic", "guo2020broader")
    published = Published(7, all=10_015)
    tables = tuple(str(Path(f, g, f"{_GROUND_TRUTH}.csv")) for f in _FOLDERS for g in (_GROUND_TRUTH, ""))
    other_tables = _METADATA
    image_folders = tuple(str(Path(folder, _IMAGES)) for folder in _FOLDERS)
    ending = ".jpg"
    group_column = (_LESION, "lesion")
    groups_in = f"Put HAM10000_metadata.csv or {_GROUPINGS} next to the table, or leave out --data.group."
    classes = tuple(CLASS_NAMES.values())
    relatives: ClassVar[dict[str, str]] = {
        "isic2018_task3_validation_groundtruth.csv": "the table of the validation images",
        "isic2018_task3_test_groundtruth.csv": "the table of the test images",
        "isic_2019_training_groundtruth.csv": "the table of ISIC 2019, another set with 8 classes",
    }

    def find_image_folders(self, table: Path | None) -> list[Path]:
        """Return the first of the image folders that is there."""
        found = first_of(self.root, self.image_folders)
        return [found] if found else []

    def read_rows(self, table: Path, findings: Findings) -> Iterable[LabeledRow]:
        """Read the rows with exactly one label."""
        if not table.name.casefold().startswith("isic"):
            return self._read_metadata(table, findings)
        content = read_table(table, self.root, "image", CLASS_NAMES, findings)
        filled = [label for label in CLASS_NAMES if any(cells[label] for _, _, cells in content.rows)]
        empty = [
            f"{content.title}: column {label} ({name})" for label, name in CLASS_NAMES.items() if label not in filled
        ]
        good, without, several, other = [], [], [], []
        for line, name, cells in content.rows:
            ones = [label for label in filled if _number(cells[label]) == 1]
            wrong = [f"{label} '{cells[label]}'" for label in filled if _number(cells[label]) not in (0, 1)]
            where = f"{content.title}, line {line} ({name})"
            if wrong:
                other.append(f"{where}: expected 0 or 1, found {', '.join(wrong)}")
            elif len(ones) > 1:
                several.append(f"{where}: expected one 1, found {' and '.join(ones)}")
            elif not ones:
                without.append(f"{where}: expected one 1, found none")
            else:
                good.append(LabeledRow(line, name, list(CLASS_NAMES).index(ones[0])))
        findings.fault(counted(empty, "column is empty", "columns are empty"), CORRECT)
        findings.fault(counted(without, "row has no label", "rows have no label"), CORRECT)
        findings.fault(counted(several, "row has several labels", "rows have several labels"), CORRECT)
        odd = counted(other, "row has a value other than 0 and 1", "rows have values other than 0 and 1")
        findings.fault(odd, CORRECT)
        return good

    def with_groups(self, rows: list[LabeledRow], table: Path) -> list[LabeledRow]:
        """Return the rows with their lesions, from the metadata of HAM10000 or the groupings of the challenge."""
        if any(row.group for row in rows):
            return rows
        names = {name.casefold() for name in (*_METADATA, _GROUPINGS)}
        folders = dict.fromkeys((self.root, *table.parents[:2]))
        beside = [folder / name for folder in folders for name in list_place(folder).files if name.casefold() in names]
        if not beside and self.group is not None:
            beside = self.tree.files_called(names)
        lesions: dict[str, str] = {}
        for path in beside[:1]:
            columns, lines, _ = read_csv(path, (_LESION,))
            cells = [dict(zip(columns, row, strict=False)) for _, row in lines]
            lesions = {row.get("image_id") or row.get("image", ""): row.get(_LESION, "") for row in cells}
        return [row._replace(group=lesions.get(row.name, "")) for row in rows]

    def _read_metadata(self, table: Path, findings: Findings) -> list[LabeledRow]:
        """Read the table of HAM10000, whose column dx has the diagnosis."""
        content = read_table(table, self.root, "image_id", ["dx"], findings, others_allowed=True)
        lesions = {name: cells.get(_LESION, "") for _, name, cells in content.rows}
        findings.note(Finding(f"the labels are those of {content.title}; there is no {_GROUND_TRUTH}.csv"))
        labels = {name: label for label, name in enumerate(CLASS_NAMES)}
        odd = [
            f"{content.title}, line {line} ({name}): no such diagnosis '{cells['dx']}'"
            for line, name, cells in content.rows
            if cells["dx"].upper() not in labels
        ]
        findings.fault(counted(odd, "row has an unknown diagnosis", "rows have an unknown diagnosis"), CORRECT)
        rows = ((line, name, cells["dx"].upper()) for line, name, cells in content.rows)
        return [LabeledRow(line, name, labels[dx], lesions[name]) for line, name, dx in rows if dx in labels]


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace(",", "."))  # as spreadsheets write it where the comma is the decimal point
    except ValueError:
        return None
