"""`dtrap data check`: find the sets under a folder, count their images and report what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ...console import print_table, say
from ...errors import DtrapError, visible
from ...files import write_atomically
from ..catalog import SETS, find_set
from ..findings import Finding, Findings, counted, relative
from ..folder import FolderDataModule, WrongLevel
from ..image_check import find_faults, full_fault
from ..images import open_image
from ..index import SPLITS, DataNotFound, ImageIndex
from ..pixels import check_value_range
from ..places import FolderTree, check_no_splits, unread
from ..published import Published
from ..walk import list_folders

CASES = 3
FOLDER = "folder"  # what a user's own class folders are called
COLUMNS = ("set", "images", "classes", "per class", "found / published", "missing", "unreadable", "verdict")
NUMBERS = ("images", "classes", "per class", "missing", "unreadable")


@dataclass
class SetReport:
    """What was found of one set.

    Attributes:
        name: Its name in the catalog.
        index: Images that are there and have a label.
        published: Published numbers.
        faults: What stops a run, then unreadable images.
        differences: What differs from the published set, as a part of it does.
        notes: What else a user should know.
        unreadable: Number of images that cannot be decoded; None where decoding was not tried.
    """

    name: str
    index: ImageIndex
    published: Published
    faults: list[Finding]
    differences: list[Finding]
    notes: list[Finding]
    unreadable: int | None = None

    def found(self) -> dict[str, int]:
        """Return the numbers of images: of each split, or of "all" without a split."""
        if self.index.splits is None:
            return {"all": len(self.index.paths)}
        counts = Counter(self.index.splits)
        return {split: counts[split] for split in SPLITS if split in counts or split in self.published.images}

    @property
    def findings(self) -> tuple[tuple[str, list[Finding]], ...]:
        """All that was found, by its kind."""
        return ("fault", self.faults), ("differs", self.differences), ("note", self.notes)

    def images_per_class(self) -> dict[str, int]:
        """Return the number of images of each class, in the order of the labels; a class may have none."""
        counts = Counter(self.index.labels)
        return {name: counts[label] for label, name in enumerate(self.index.class_names)}


def check(
    root: Path,
    console: Console,
    *,
    only: str | None = None,
    decode: bool = True,
    verbose: bool = False,
    table: Path | None = None,
    value_range: list[float] | None = None,
) -> int:
    """Print a table of the sets under a root and what is wrong with them.

    A root without a known set is read as class folders, as `dtrap fit` with folder.yaml does.

    Args:
        root: Folder of one or several sets.
        console: Where to print.
        only: Name of the only set to look for; its classes are listed.
        decode: Whether to decode every image.
        verbose: Whether to list the classes of every set, and all cases instead of the first few.
        table: CSV file for all faults and notes, one row for each file, row or class; None for none.
        value_range: The values [black, white] of images with more than 8 bits; None for those that the files state.

    Returns:
        1 if there is a fault or a difference from a published set, otherwise 0.

    Raises:
        DtrapError: No set was found, or the name is unknown.
    """
    check_value_range(value_range)
    reports = _read_sets(root, only)
    if decode:
        _decode(reports, root, console, value_range)
    _print_table(reports, console)
    for report in reports:
        _print_findings(report, console, classes=verbose or only is not None, most=None if verbose else CASES)
    if table is not None:
        _write_table(table, reports)
        say(console, f"All faults and notes: {table}")
    return 1 if any(report.faults or report.differences for report in reports) else 0


def _read_sets(root: Path, only: str | None) -> list[SetReport]:
    """Read the sets under a root, or its class folders; raises as `check`."""
    list_folders(root)  # a folder that cannot be read has no sets
    sets = {} if only == FOLDER else SETS if only is None else {only: find_set(only)}
    tree = FolderTree(root)
    reports = []
    for name in sets:
        try:
            reports.append(_read(name, tree))
        except DataNotFound as error:
            if only is not None:
                raise DtrapError(
                    f"{error} `dtrap data fetch {only} ROOT` downloads it or says how to get it."
                ) from None
    if not reports and only in (None, FOLDER):
        reports = _read_folder(root, asked=only == FOLDER)
    if not reports:
        check_no_splits(root, "root", one_task=True)
    if not reports:
        raise DtrapError(
            f"No known data set found in {root}. Looked for: {', '.join(sets)}.{unread(tree)} "
            "`dtrap data fetch NAME ROOT` downloads one or says how to get it."
        )
    return reports


def _read_folder(root: Path, *, asked: bool) -> list[SetReport]:
    """Read a user's class folders; nothing where the root has none of images and they were not asked for."""
    module = FolderDataModule(root)
    try:
        index = module.scan()
    except WrongLevel:
        raise
    except DtrapError as error:
        if not asked:
            return []
        return [SetReport(FOLDER, ImageIndex([], [], []), Published(0), [Finding(str(error))], [], [])]
    report = SetReport(FOLDER, index, Published(0), _faults_of(index, root), [], _notes_of(index))
    empty = [name for name, count in report.images_per_class().items() if not count]
    report.faults += filter(None, [counted(empty, "class folder has no image", "class folders have no image")])
    return [report] if asked or len({*index.labels}) > 1 else []


def _faults_of(index: ImageIndex, root: Path) -> list[Finding]:
    """Return what could not be read while the folders were listed."""
    cases = [f"{relative(path, root)}: {reason}" for path, reason in index.faults]
    found = counted(cases, "file or folder cannot be used", "files or folders cannot be used")
    return [found] if found else []


def _notes_of(index: ImageIndex) -> list[Finding]:
    return [Finding(note) for note in index.notes]


def _write_table(path: Path, reports: Sequence[SetReport]) -> None:
    """Write a CSV file with the columns set, kind, finding and case."""
    import pandas as pd  # takes half a second

    rows = [
        {"set": report.name, "kind": kind, "finding": finding.text, "case": case}
        for report in reports
        for kind, findings in report.findings
        for finding in findings
        for case in finding.cases or [""]
    ]
    text = pd.DataFrame(rows, columns=["set", "kind", "finding", "case"]).to_csv(index=False, lineterminator="\n")
    write_atomically(path, text, "or name another file with --csv.")


def _read(name: str, tree: FolderTree) -> SetReport:
    """Read a set and compare it with the published numbers.

    Raises:
        DataNotFound: Nothing of it is under the root of the tree.
    """
    module = SETS[name](tree.root)
    module.tree = tree  # listed once for all sets
    findings = Findings(module.title, stop=False)
    try:
        index = module.read(findings)
    except DataNotFound:
        raise
    except DtrapError as error:
        index = ImageIndex([], [], [])
        findings.faults.append(Finding(str(error)))
    faults = [*findings.faults, *_faults_of(index, tree.root)]
    notes = [*findings.notes, *_notes_of(index)]
    report = SetReport(name, index, module.published, faults, findings.differences, notes)
    if index.class_names:
        report.differences += _count_differences(report)
    return report


def _count_differences(report: SetReport) -> Iterator[Finding]:
    """Yield which numbers of classes and images differ from the published ones."""
    without = [label for label, count in report.images_per_class().items() if not count]
    filled = len(report.index.class_names) - len(without)
    if filled != report.published.classes:
        text = f"{filled} class{'' if filled == 1 else 'es'} with images, {report.published.classes} published"
        yield Finding(text, [f"class '{label}': no image" for label in without])
    counts = {"all": len(report.index.paths), **report.found()}
    for split, number in report.published.images.items():
        if counts.get(split, number) != number:
            where = "" if split == "all" else f"{split}: "
            yield Finding(f"{where}{counts[split]:,} images found, {number:,} published")


def _decode(reports: list[SetReport], root: Path, console: Console, value_range: list[float] | None) -> None:
    """Decode the images of all sets, each file once, and add those that cannot be read to the reports."""
    unreadable = find_unreadable({path for report in reports for path in report.index.paths}, console, value_range)
    for report in reports:
        cases = [f"{relative(path, root)}: {unreadable[path]}" for path in report.index.paths if path in unreadable]
        report.unreadable = len(cases)
        found = counted(cases, "image cannot be read", "images cannot be read")
        report.faults += [found] if found else []


def find_unreadable(paths: Iterable[str], console: Console, value_range: list[float] | None = None) -> dict[str, str]:
    """Decode images in threads, with a progress bar on a terminal.

    Returns:
        Reason for each image that cannot be decoded.
    """

    def test(path: str) -> str:
        return full_fault(path, partial(open_image, path, value_range))

    ordered = sorted(paths)
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    found: dict[str, str] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(ordered))
        for path, reason in zip(ordered, find_faults(ordered, test), strict=True):
            if reason:
                found[path] = reason
            progress.advance(task)
    return found


def _print_table(reports: list[SetReport], console: Console) -> None:
    table = Table(*COLUMNS, box=box.SIMPLE)
    for column in table.columns:
        column.justify = "right" if column.header in NUMBERS else "left"
    for report in reports:
        table.add_row(*(Text(cell) for cell in _cells(report)))
    print_table(table, console)


def _cells(report: SetReport) -> list[str]:
    counts = [count for count in report.images_per_class().values() if count]
    faults = len(report.faults)
    sound = "differs" if report.differences else "ok"
    least, most = min(counts, default=0), max(counts, default=0)
    splits, numbers = [], report.published.images
    for split, count in report.found().items():
        published = f" / {numbers[split]:,}" if split in numbers else ""
        splits.append(f"{'' if split == 'all' else split + ' '}{count:,}{published}")
    return [
        report.name,
        f"{len(report.index.paths):,}",
        f"{len(counts):,}",
        f"{least:,}" if least == most else f"{least:,}..{most:,}",
        " · ".join(splits),
        f"{len(report.index.missing):,}",
        "not tried" if report.unreadable is None else f"{report.unreadable:,}",
        f"{faults} fault{'s' * (faults > 1)}" if faults else sound,
    ]


def _print_findings(report: SetReport, console: Console, *, classes: bool, most: int | None) -> None:
    lines = []
    for kind, findings in report.findings:
        for finding in findings:
            shown = finding.cases[:most]
            lines += [f"  {kind:5} {finding.text}", *(f"          {case}" for case in shown)]
            if len(shown) < len(finding.cases):
                lines.append(f"          and {len(finding.cases) - len(shown):,} more")
    if classes:
        lines += ["  images per class", *(f"    {n:>7,}  {name}" for name, n in report.images_per_class().items())]
    for line in [report.name, *lines] if lines else []:
        console.print(Text(visible(line, keep="\n")), soft_wrap=True)
