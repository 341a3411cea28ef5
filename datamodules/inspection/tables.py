"""Reading the tables of ISIC and ChestX row by row: a wrong row is told and left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from ...errors import DtrapError, nearest
from .. import ImageIndex, chestx, isic
from ..findings import Finding, Scan, missing_faults, relative, told
from ..images import list_images
from ..tables import check_columns, read_table

IMAGE, FINDINGS = "Image Index", "Finding Labels"
CHESTX_ROWS = 112_120


@dataclass(frozen=True)
class _Source:
    """A table of labels and the folders of its images; either may be absent."""

    root: Path
    table: Path | None
    folders: list[Path]
    stems: bool
    ending: str

    def files(self) -> dict[str, str]:
        """Path of each image by its name in the table."""
        paths = [Path(path) for folder in self.folders for path in list_images(folder)]
        return {path.stem if self.stems else path.name: str(path) for path in paths}


@dataclass(frozen=True)
class _Row:
    """A row that can be used: line of the file, name of the image and label."""

    line: int
    name: str
    label: int


def scan_isic(root: Path) -> Scan | None:
    """ISIC 2018 task 3 under a root; None where neither the table nor the image folder is there."""
    table, images = (_first(root, places) for places in (isic.TABLES, isic.IMAGE_FOLDERS))
    source = _Source(root, table, [images] if images else [], stems=True, ending=".jpg")
    return _scan(source, [*isic.CLASS_NAMES.values()], _isic_rows, isic.IMAGES, f"{isic.GROUND_TRUTH}.csv")


def scan_chestx(root: Path) -> Scan | None:
    """ChestX-ray14 under a root; None where neither the table nor an image folder is there."""
    table = _first(root, chestx.TABLES)
    folders = [table.parent / folder for folder in chestx.IMAGE_FOLDERS] if table else []
    source = _Source(root, table, [folder for folder in folders if folder.is_dir()], stems=False, ending="")
    return _scan(source, chestx.CLASS_NAMES, _chestx_rows, chestx.IMAGE_FOLDERS[0], chestx.TABLE)


def _first(root: Path, candidates: Iterable[str]) -> Path | None:
    return next((root / place for place in candidates if (root / place).exists()), None)


_Read = Callable[[Path, str, Scan], list[_Row]]


def _scan(source: _Source, class_names: Sequence[str], read: _Read, images: str, table: str) -> Scan | None:
    scan = Scan(ImageIndex([], [], list(class_names), roots=tuple(map(str, source.folders))))
    if source.table is None:
        if not source.folders:
            return None
        where = relative(source.folders[0], source.root)
        text = f"the table {table} is missing; the image folder {where} is there"
        return Scan(replace(scan.index, class_names=[]), [Finding(text)])
    title = relative(source.table, source.root)
    if not source.folders:
        scan.faults.append(Finding(f"the image folder {images} is missing; the table {title} is there"))
    try:
        rows = read(source.table, title, scan)
    except DtrapError as error:
        return Scan(replace(scan.index, class_names=[]), [*scan.faults, Finding(str(error))])
    return _with_images(scan, source, sorted(rows, key=lambda row: row.name), title)


def _with_images(scan: Scan, source: _Source, rows: list[_Row], title: str) -> Scan:
    files = source.files()
    here = [row for row in rows if row.name in files]
    index = replace(scan.index, paths=[files[row.name] for row in here], labels=[row.label for row in here])
    if source.folders:
        absent = {str(source.folders[0] / (row.name + source.ending)): row for row in rows if row.name not in files}
        index = replace(index, missing=tuple(absent))
        told_rows = {path: f"{title}, line {row.line} ({index.class_names[row.label]})" for path, row in absent.items()}
        scan.faults += missing_faults(index, source.root, told_rows)
    else:
        index = replace(index, missing=tuple(row.name for row in rows))
    scan.index = index
    return scan


def _isic_rows(path: Path, title: str, scan: Scan) -> list[_Row]:
    frame = read_table(path, dtype=str)
    check_columns(path, list(frame.columns), ["image", *isic.CLASS_NAMES])
    labels = [name for name in isic.CLASS_NAMES if frame[name].notna().any()]
    values = frame[labels].apply(pd.to_numeric, errors="coerce")
    empty = [f"{title}: column {name} ({text})" for name, text in isic.CLASS_NAMES.items() if name not in labels]
    good, without, several, other = [], [], [], []
    seen = _Names(title)
    for line, (name, cells, row) in enumerate(
        zip(frame["image"], frame[labels].to_numpy(), values.to_numpy(), strict=True), 2
    ):
        if not seen.is_new(line, name):
            continue
        ones = [label for label, value in zip(labels, row, strict=True) if value == 1]
        filled = [(label, cell) for label, cell, value in zip(labels, cells, row, strict=True) if value not in (0, 1)]
        where = f"{title}, line {line} ({name})"
        if filled:
            found = ", ".join(f"{label} '{'' if pd.isna(cell) else cell}'" for label, cell in filled)
            other.append(f"{where}: expected 0 or 1, found {found}")
        elif len(ones) > 1:
            several.append(f"{where}: expected one 1, found {' and '.join(ones)}")
        elif not ones:
            without.append(f"{where}: expected one 1, found none")
        else:
            good.append(_Row(line, name, list(isic.CLASS_NAMES).index(ones[0])))
    scan.faults += [
        *seen.faults(),
        *told(empty, "column is empty", "columns are empty"),
        *told(without, "row has no label", "rows have no label"),
        *told(several, "row has several labels", "rows have several labels"),
        *told(other, "row has a value other than 0 and 1", "rows have values other than 0 and 1"),
    ]
    return good


def _chestx_rows(path: Path, title: str, scan: Scan) -> list[_Row]:
    frame = read_table(path, dtype=str)
    check_columns(path, list(frame.columns), [IMAGE, FINDINGS], others_allowed=True)
    known = [*chestx.CLASS_NAMES, *chestx.OTHER_FINDINGS]
    good, without, unknown = [], [], []
    several, others = 0, Counter[str]()
    seen = _Names(title)
    for line, (name, findings) in enumerate(zip(frame[IMAGE], frame[FINDINGS], strict=True), 2):
        if not seen.is_new(line, name):
            continue
        names = [] if pd.isna(findings) else str(findings).split("|")
        wrong = [finding for finding in names if finding not in known]
        where = f"{title}, line {line} ({name})"
        if not names:
            without.append(f"{where}: expected a finding, found nothing")
        elif wrong:
            unknown.append(f"{where}: no such finding '{wrong[0]}'.{nearest(wrong[0], known)}")
        elif len(names) > 1:
            several += 1
        elif names[0] in chestx.CLASS_NAMES:
            good.append(_Row(line, name, chestx.CLASS_NAMES.index(names[0])))
        else:
            others[names[0]] += 1
    scan.faults += [
        *seen.faults(),
        *told(without, "row has no finding", "rows have no finding"),
        *told(unknown, "row has an unknown finding", "rows have an unknown finding"),
    ]
    if len(frame) != CHESTX_ROWS:
        scan.faults.append(Finding(f"{len(frame):,} rows in {title}, {CHESTX_ROWS:,} published"))
    scan.notes += _skipped(several, others) + _empty_columns(frame.drop(columns=[IMAGE, FINDINGS]))
    return good


def _skipped(several: int, others: Counter[str]) -> list[Finding]:
    """What the protocol leaves out, which is as published."""
    found = []
    if several:
        found.append(
            Finding(f"{several:,} row{'s' * (several > 1)} with several findings skipped, as the protocol says")
        )
    if others:
        names = [f"{name} {count:,}" for name, count in others.most_common()]
        count = others.total()
        text = f"{count:,} row{'s' * (count > 1)} with a finding outside the {len(chestx.CLASS_NAMES)} skipped"
        found.append(Finding(f"{text}: {', '.join(names)}"))
    return found


def _empty_columns(frame: pd.DataFrame) -> list[Finding]:
    """Columns without any value, and those with some: of no use to the protocol, so no fault."""
    by_count: defaultdict[int, list[str]] = defaultdict(list)
    for number, name in enumerate(frame.columns, 3):
        title = f"(column {number} without a title)" if name.startswith("Unnamed: ") else name
        by_count[int(frame[name].isna().sum())].append(title)
    return [
        Finding(f"{count:,} of {len(frame):,} rows have nothing in columns that are not used: {', '.join(names)}")
        for count, names in sorted(by_count.items(), reverse=True)
        if count
    ]


class _Names:
    """The names of a table's images: each has to be there, once."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.lines: dict[str, int] = {}
        self.nameless: list[str] = []
        self.twice: list[str] = []

    def is_new(self, line: int, name: object) -> bool:
        """Whether a row is the first one of an image; otherwise it is kept as a fault."""
        if not isinstance(name, str):
            self.nameless.append(f"{self.title}, line {line}: no image name")
            return False
        if name in self.lines:
            self.twice.append(f"{self.title}, line {line}: {name} is in line {self.lines[name]} already")
            return False
        self.lines[name] = line
        return True

    def faults(self) -> list[Finding]:
        """The rows that were refused."""
        return [
            *told(self.nameless, "row has no image name", "rows have no image name"),
            *told(self.twice, "row names an image again", "rows name an image again"),
        ]
