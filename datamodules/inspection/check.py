"""`dtrap data check`: find the sets under a folder, count their images and report what is wrong with them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...console import print_table, say
from ...errors import DtrapError, check_template, visible
from ...files import write_atomically
from ..catalog import SETS, find_set
from ..findings import Finding, Findings, counted, relative
from ..folder import FolderDataModule
from ..image_check import find_faults, full_fault
from ..images import open_image
from ..index import DataNotFound, ImageIndex
from ..pixels import check_value_range
from ..places import FolderTree, check_no_splits, unread
from ..walk import list_folders, list_images
from .fingerprints import bar
from .own_images import FOLDER, TABLE, TableColumns, inspect_own, read_own
from .set_report import SetReport, faults_of, notes_of

CASES = 3
COLUMNS = ("set", "images", "classes", "per class", "found / published", "missing", "unreadable", "verdict")
NUMBERS = ("images", "classes", "per class", "missing", "unreadable")


def check(
    root: Path,
    console: Console,
    *,
    only: str | None = None,
    decode: bool = True,
    verbose: bool = False,
    table: Path | None = None,
    value_range: list[float] | None = None,
    labels: Path | None = None,
    columns: TableColumns | None = None,
    template: str = FolderDataModule.default_template,
) -> int:
    """Print a table of the sets under a root and what is wrong with them.

    A root without a known set is read as class folders, as `dtrap fit` with folder.yaml does. Of a user's own images
    class names and copies are checked as well.

    Args:
        root: Folder of one or several sets.
        console: Where to print.
        only: Name of the only set to look for; its classes are listed.
        decode: Whether to decode every image.
        verbose: Whether to list the classes of every set, and all cases instead of the first few.
        table: CSV file for all faults and notes, one row for each file, row or class; None for none.
        value_range: The values [black, white] of images with more than 8 bits; None for those that the files state.
        labels: Table of the labels of a user's own images under the root; None for class folders or known sets.
        columns: Columns of that table, where they cannot be found by their names.
        template: Class prompt with `{}` for the class name, for own images.

    Returns:
        1 if there is a fault or a difference from a published set, otherwise 0.

    Raises:
        DtrapError: No set was found, or the name is unknown.
    """
    check_value_range(value_range)
    check_template("--template", template)
    reports = _read_sets(root, only) if labels is None else read_own(root, labels, asked=True, columns=columns)
    own = [report for report in reports if report.name in (FOLDER, TABLE)]
    for report in own:
        inspect_own(report, root, console, decode=decode, template=template, value_range=value_range)
    if decode:
        _decode([report for report in reports if report not in own], root, console, value_range)
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
    if only is None and len(reports) == 1 and _by_chance(reports[0], root):
        reports = []
    if not reports and only in (None, FOLDER):
        reports = read_own(root, None, asked=only == FOLDER)
    if not reports:
        check_no_splits(root, "root", one_task=True)
    if not reports:
        raise DtrapError(
            f"No known data set found in {root}. Looked for: {', '.join(sets)}.{unread(tree)} "
            "`dtrap data fetch NAME ROOT` downloads one or says how to get it."
        )
    return reports


def _by_chance(report: SetReport, root: Path) -> bool:
    """Whether a few of a user's own class folders are called like classes of a set; if it may be, a note says so."""
    classes = sum(1 for count in report.images_per_class().values() if count)
    if not 0 < classes < report.published.classes / 2:
        return False
    used = {relative(path, root).partition("/")[0] for path in report.index.paths}
    others = [name for name in list_folders(root) if name not in used and list_images(root / name, recursive=True)]
    text = f"{classes} of its {report.published.classes} classes; are they your own images? Then give --set {FOLDER}"
    report.notes.append(Finding(text))
    return len(others) >= classes and len(used) == classes


def _write_table(path: Path, reports: Sequence[SetReport]) -> None:
    """Write a CSV file with the columns set, kind, finding, case, and first and second of a pair of images."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")  # pandas cannot hold names that are not UTF-8
    table.writerow(["set", "kind", "finding", "case", "first", "second"])
    for report in reports:
        for kind, findings in report.findings:
            for finding in findings:
                cases = zip_longest(finding.cases or [""], finding.files, fillvalue=("", ""))
                table.writerows([report.name, kind, finding.text, case, *files] for case, files in cases)
    write_atomically(path, text.getvalue(), "or name another file with --csv.")


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
    faults = [*findings.faults, *faults_of(index, tree.root)]
    notes = [*findings.notes, *notes_of(index)]
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
    found: dict[str, str] = {}
    with bar("decoding", len(ordered), console) as progress:
        for path, reason in zip(ordered, find_faults(ordered, test), strict=True):
            if reason:
                found[path] = reason
            progress.advance(progress.task_ids[0])
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
    lines += [f"  {line}" for line in report.lines]
    if classes and not report.lines:
        lines += ["  images per class", *(f"    {n:>7,}  {name}" for name, n in report.images_per_class().items())]
    for line in [report.name, *lines] if lines else []:
        console.print(Text(visible(line, keep="\n")), soft_wrap=True)
