"""ChestX (NIH ChestX-ray14): frontal chest X-rays."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from PIL import Image

from ..errors import nearest
from .findings import Finding, Findings, counted
from .published import Published
from .tables import CORRECT, LabeledRow, PublishedTableDataModule, Table, read_table

CLASS_NAMES = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax")
_OTHERS = ("Consolidation", "Edema", "Emphysema", "Fibrosis", "Hernia", "Pleural_Thickening", "Pneumonia", "No Finding")

_IMAGE, _FINDINGS, _PATIENT = "Image Index", "Finding Labels", "Patient ID"
_TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv", "sample_labels.csv")  # the last: 5,606 rows of Kaggle


class ChestXDataModule(PublishedTableDataModule):
    """Episodes of ChestX-ray14: the X-rays with exactly one finding that is one of seven.

    Format: `Data_Entry_2017.csv` or `Data_Entry_2017_v2020.csv` (columns "Image Index" and "Finding Labels", findings
    separated by `|`), and the PNG files in `images/` next to it or in `images_001/images/` .. `images_012/images/`,
    under the root, its subfolder ChestX or up to five folders lower. Images are opened as RGB at 256 x 256 pixels
    (bicubic), as in the benchmark of Guo et al., "A Broader Study of Cross-Domain Few-Shot Learning", ECCV 2020.

    Source: https://nihcc.app.box.com/v/ChestXray-NIHCC, 112,120 images. Wang et al., "ChestX-ray8", CVPR 2017.
    License: free use with attribution to the NIH Clinical Center.

    Attributes:
        published_rows: Published number of rows of the table. The number of rows with one finding is not published.
    """

    title = "ChestX"
    references = ("wang2017chestxray8", "guo2020broader")
    measures_auroc = True
    published = Published(7)
    published_rows: ClassVar[int] = 112_120
    tables = tuple(str(Path(folder, name)) for folder in ("", "ChestX", "chestX", "CXR8") for name in _TABLES)
    image_folders = ("images", *(f"images_{number:03d}/images" for number in range(1, 13)))
    classes = CLASS_NAMES
    group_column = ("patient_id", "patient")
    groups_in = f'Expected a column "{_PATIENT}", as the official table has it.'
    opens_files = True  # `load_image` only resizes

    def find_image_folders(self, table: Path | None) -> list[Path]:
        """Return the image folders next to the table."""
        places = [table.parent / folder for folder in self.image_folders] if table else []
        return [folder for folder in places if folder.is_dir()]

    def read_rows(self, table: Path, findings: Findings) -> Iterable[LabeledRow]:
        """Read the rows with one finding out of the seven."""
        content = read_table(table, self.root, _IMAGE, [_FINDINGS], findings, others_allowed=True)
        known = (*CLASS_NAMES, *_OTHERS)
        good, without, unknown = [], [], []
        several, others = 0, Counter[str]()
        for line, name, cells in content.rows:
            names = cells[_FINDINGS].split("|")
            wrong = next((finding for finding in names if finding not in known), None)
            where = f"{content.title}, line {line} ({name})"
            if not cells[_FINDINGS]:
                without.append(f"{where}: expected a finding, found nothing")
            elif wrong is not None:
                unknown.append(f"{where}: no such finding '{wrong}'.{nearest(wrong, known)}")
            elif len(names) > 1:
                several += 1
            elif names[0] in CLASS_NAMES:
                good.append(LabeledRow(line, name, CLASS_NAMES.index(names[0]), cells.get(_PATIENT, "")))
            else:
                others[names[0]] += 1
        findings.fault(counted(without, "row has no finding", "rows have no finding"), CORRECT)
        findings.fault(counted(unknown, "row has an unknown finding", "rows have an unknown finding"), CORRECT)
        if content.count != self.published_rows:
            text = f"{content.count:,} rows in {content.title}, {self.published_rows:,} published"
            findings.difference(Finding(text))
        findings.notes += [*_left_out(several, others), *(() if findings.stop else _empty_columns(content))]
        return good

    def load_image(self, position: int) -> Image.Image:
        """Return the RGB picture of 256 x 256 pixels at a position of the index."""
        return super().load_image(position).resize((256, 256), Image.Resampling.BICUBIC)


def _left_out(several: int, others: Counter[str]) -> Iterator[Finding]:
    """Yield how many rows the protocol leaves out."""
    if several:
        yield Finding(f"{several:,} row{'s' * (several > 1)} with several findings skipped, as the protocol says")
    if others:
        count, names = others.total(), ", ".join(f"{name} {count:,}" for name, count in others.most_common())
        yield Finding(
            f"{count:,} row{'s' * (count > 1)} with a finding outside the {len(CLASS_NAMES)} skipped: {names}"
        )


def _empty_columns(table: Table) -> Iterator[Finding]:
    """Yield how many rows have no value in the columns that are not used."""
    by_count: defaultdict[int, list[str]] = defaultdict(list)
    for number, name in enumerate(table.columns, 1):
        if name not in (_IMAGE, _FINDINGS):
            empty = sum(not cells[name] for _, _, cells in table.rows)
            by_count[empty].append(name or f"(column {number} without a title)")
    for count, names in sorted(by_count.items(), reverse=True):
        if count:
            total = len(table.rows)
            yield Finding(f"{count:,} of {total:,} rows have nothing in columns that are not used: {', '.join(names)}")
