"""`dtrap data check` of a user's own class folders or table: counts, sizes, class names and copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console

from ...errors import DtrapError
from ..findings import Finding, counted, relative
from ..folder import FolderDataModule, WrongLevel
from ..index import SPLITS, ImageIndex
from ..published import Published
from ..table import TableDataModule
from .class_names import check_class_names
from .copies import copy_findings
from .fingerprints import Fingerprint, fingerprints
from .set_report import SetReport, faults_of, notes_of

FOLDER, TABLE = "folder", "table"  # what own images are called where the sets have their names
_SMALL, _LONG = 32, 4  # pixels of a side; ratio of the sides
_UNEQUAL = 10  # ratio of the largest class and the smallest
_SIZES_SHOWN = 5


class TableColumns(TypedDict, total=False):
    """Arguments of `TableDataModule` that name columns; absent for those that it finds itself."""

    path_column: str
    label_column: str
    split_column: str
    group: str


def own_data(root: Path, table: Path | None, **options: Any) -> FolderDataModule:
    """Return the data module of class folders or of a table; unusable images and small classes do not stop it."""
    common: dict[str, Any] = {"bad_images": "skip", "small_classes": "skip", **options}
    if table is None:
        return FolderDataModule(root, **common)
    return TableDataModule(root, table=table, **common)


def read_own(root: Path, table: Path | None, *, asked: bool, columns: TableColumns | None = None) -> list[SetReport]:
    """Read a user's images; nothing where a root has no class folders and they were not asked for."""
    module = own_data(root, table, **(columns or {}))
    module.compares_files = False  # the check says more about copies
    name = FOLDER if table is None else TABLE
    try:
        index = module.scan()
    except WrongLevel:
        raise
    except DtrapError as error:
        if not asked:
            return []
        return [SetReport(name, ImageIndex([], [], []), Published(0), [Finding(str(error))], [], [])]
    report = SetReport(name, index, Published(0), faults_of(index, root), [], notes_of(index))
    absent = [relative(path, root) for path in index.missing]
    empty = [name for name, count in report.images_per_class().items() if not count]
    what = ("folder", "folders") if table is None else ("name", "names")
    report.faults += filter(
        None,
        [
            counted(absent, "image is named but does not exist", "images are named but do not exist"),
            counted(empty, f"class {what[0]} has no image", f"class {what[1]} have no image"),
        ],
    )
    return [report] if asked or len({*index.labels}) > 1 else []


def inspect_own(
    report: SetReport,
    root: Path,
    console: Console,
    *,
    decode: bool,
    template: str,
    value_range: Sequence[float] | None,
) -> None:
    """Add to a report what the names, the files and the images show.

    Args:
        report: What `read_own` returned.
        root: Folder that paths are shown from.
        console: Where bars are shown.
        decode: Whether to decode the images, which tells sizes, unreadable images and near copies.
        template: Class prompt with `{}` for the class name.
        value_range: The values [black, white] of images with more than 8 bits.
    """
    index = report.index
    faults, notes = check_class_names(index.class_names, template)
    report.faults += faults
    report.notes += notes
    report.faults += _divided_groups(index)
    read: list[Fingerprint | str] = []
    if decode:
        read = fingerprints(index.paths, console, value_range)
        results = zip(index.paths, read, strict=True)
        broken = [f"{relative(path, root)}: {reason}" for path, reason in results if isinstance(reason, str)]
        report.unreadable = len(broken)
        report.faults += filter(None, [counted(broken, "image cannot be read", "images cannot be read")])
    faults, notes = copy_findings(index, root, [f if isinstance(f, Fingerprint) else None for f in read], console)
    report.faults += faults
    report.notes += [*notes, *_unequal(report), *_odd_sizes(index, read, root)]
    report.lines += [*_counts(report), *_sizes(read)]


def _divided_groups(index: ImageIndex) -> Iterator[Finding]:
    """Find groups, such as patients, with images on both sides of a split."""
    if index.groups is None or index.splits is None:
        return
    splits: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(index.groups, index.splits, strict=True):
        if group:
            splits[group].add(split)
    divided = {group: [name for name in SPLITS if name in found] for group, found in splits.items()}
    cases = [f"{group}: {', '.join(names)}" for group, names in divided.items() if len(names) > 1]
    found = counted(cases, "group has images in several splits", "groups have images in several splits")
    if found:
        yield found


def _unequal(report: SetReport) -> Iterator[Finding]:
    """Note classes with one image only, and classes of very different sizes."""
    counts = {name: count for name, count in report.images_per_class().items() if count}
    single = [name for name, count in counts.items() if count == 1]
    found = counted(single, "class has one image only", "classes have one image only")
    if found:
        yield found
    if counts and max(counts.values()) >= _UNEQUAL * min(counts.values()):
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        numbers = f"{counts[most]:,} images of '{most}', {counts[least]:,} of '{least}'"
        yield Finding(f"classes of very different sizes: {numbers}")


def _odd_sizes(index: ImageIndex, read: Sequence[Fingerprint | str], root: Path) -> Iterator[Finding]:
    """Note images that are very small, or of which a square shows a small part."""
    small, long = [], []
    for path, image in zip(index.paths, read, strict=False):
        if isinstance(image, Fingerprint):
            short_side, long_side = sorted((image.width, image.height))
            case = f"{relative(path, root)} ({image.width} x {image.height})"
            small += [case] if short_side < _SMALL else []
            long += [case] if long_side > _LONG * short_side else []
    more = f"has a side of fewer than {_SMALL} pixels", f"have a side of fewer than {_SMALL} pixels"
    longer = f"is more than {_LONG} times as long as wide", f"are more than {_LONG} times as long as wide"
    for cases, (one, many) in ((small, more), (long, longer)):
        if found := counted(cases, f"image {one}", f"images {many}"):
            yield found


def _counts(report: SetReport) -> list[str]:
    """Return a table of the images of each class, and of each split where there are any."""
    index = report.index
    splits = index.splits
    if splits is None or not index.class_names:
        return ["images per class", *(f"  {count:>7,}  {name}" for name, count in report.images_per_class().items())]
    named = [split for split in SPLITS if split in splits]
    counts = Counter(zip(index.labels, splits, strict=True))
    head = "".join(f"{split:>9}" for split in named)
    rows = [
        "".join(f"{counts[label, split]:>9,}" for split in named) + f"  {name}"
        for label, name in enumerate(index.class_names)
    ]
    return ["images per class and split", head, *rows]


def _sizes(read: Sequence[Fingerprint | str]) -> list[str]:
    """Return a line on the sizes and one on the modes of the images that can be read."""
    images = [image for image in read if isinstance(image, Fingerprint)]
    if not images:
        return []
    sizes = Counter((image.width, image.height) for image in images)
    shown = [f"{width} x {height} ({count:,})" for (width, height), count in sizes.most_common(_SIZES_SHOWN)]
    rest = len(sizes) - len(shown)
    widths, heights = (f"{min(sides):,} to {max(sides):,}" for sides in zip(*sizes, strict=True))
    others = f"; {rest:,} other sizes, {widths} wide, {heights} high"
    modes = Counter(image.mode for image in images).most_common()
    return [
        f"sizes: {', '.join(shown)}{others if rest else ''}",
        f"modes: {', '.join(f'{mode} ({count:,})' for mode, count in modes)}",
    ]
