"""`dtrap data check`: which sets are under a folder, how many images they have, and what is wrong with them."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ...console import print_table
from ...errors import DtrapError
from .. import FewShotDataModule, ImageIndex
from ..catalogue import SETS, find_set
from ..findings import Finding, Scan, relative, told
from ..images import ImageError, open_image
from .scan import scan

CASES = 3
DECODED_TOGETHER = 256
SPLITS = ("train", "val", "test")


@dataclass
class SetReport:
    """What was found of one set.

    Attributes:
        name: Its name in the catalogue.
        index: Images that are there and have a label.
        published: Published numbers of images by split, or of "all".
        faults: What is wrong.
        notes: What is worth knowing.
        unreadable: Number of images that cannot be decoded; None where that was not tried.
    """

    name: str
    index: ImageIndex
    published: Mapping[str, int]
    faults: list[Finding]
    notes: list[Finding]
    unreadable: int | None = None

    @property
    def verdict(self) -> str:
        """One or two words for the table."""
        count = len(self.faults)
        return f"{count} fault{'s' * (count > 1)}" if count else "ok"

    def found(self) -> dict[str, int]:
        """Numbers of images: of each split, or of "all" where there is none."""
        if self.index.splits is None:
            return {"all": len(self.index.paths)}
        counts = Counter(self.index.splits)
        return {split: counts[split] for split in SPLITS if split in counts or split in self.published}

    def images_per_class(self) -> dict[str, int]:
        """Number of images of each class, in the order of the labels; a class may have none."""
        counts = Counter(self.index.labels)
        return {name: counts[label] for label, name in enumerate(self.index.class_names)}


def check(root: Path, console: Console, *, only: str | None = None, decode: bool = True, verbose: bool = False) -> int:
    """Print a table of the sets under a root and what is wrong with them.

    Args:
        root: Folder of one or several sets.
        console: Where to print.
        only: Name of the one set to look for; its classes are listed.
        decode: Whether to decode every image.
        verbose: Whether to list the classes of every set, and all that is wrong instead of the first cases.

    Returns:
        1 where there is a fault, otherwise 0.

    Raises:
        DtrapError: No set was found, or there is none of that name.
    """
    reports = check_sets(root, SETS if only is None else {only: find_set(only)}, console, decode=decode)
    if not reports:
        names = ", ".join(SETS) if only is None else only
        raise DtrapError(
            f"{root} has none of the data sets, nor has a folder in it the name of one. Looked for: {names}. "
            f"`dtrap data fetch {only or 'NAME'} ROOT` gets one or says how."
        )
    _print_table(reports, console)
    for report in reports:
        _print_findings(report, console, classes=verbose or only is not None, most=None if verbose else CASES)
    return 1 if any(report.faults for report in reports) else 0


def check_sets(
    root: Path, sets: Mapping[str, type[FewShotDataModule]], console: Console, *, decode: bool
) -> list[SetReport]:
    """Reports on those of the sets that are under a root."""
    reports = []
    for name, module in sets.items():
        found = scan(name, module(root, bad_images="skip", small_classes="skip"))
        if found is not None:
            reports.append(_report(name, module, found))
    if decode:
        unreadable = find_unreadable({path for report in reports for path in report.index.paths}, console)
        for report in reports:
            bad = [path for path in report.index.paths if path in unreadable]
            report.unreadable = len(bad)
            cases = [f"{relative(path, root)}: {unreadable[path]}" for path in bad]
            report.faults += told(cases, "image cannot be read", "images cannot be read")
    return reports


def _report(name: str, module: type[FewShotDataModule], found: Scan) -> SetReport:
    """Adds what differs from the published numbers, where the set could be read at all."""
    report = SetReport(name, found.index, module.published, found.faults, found.notes)
    if not found.index.class_names:
        return report
    without = [label for label, count in report.images_per_class().items() if not count]
    filled, expected = len(found.index.class_names) - len(without), module.class_count
    if filled != expected:
        text = f"{filled} class{'' if filled == 1 else 'es'} with images, {expected} published"
        report.faults.append(Finding(text, [f"class '{label}': no image" for label in without]))
    counts = {"all": len(found.index.paths), **report.found()}
    for split, number in module.published.items():
        if counts.get(split, number) != number:
            where = "" if split == "all" else f"{split}: "
            report.faults.append(Finding(f"{where}{counts[split]:,} images found, {number:,} published"))
    return report


def find_unreadable(paths: Iterable[str], console: Console) -> dict[str, str]:
    """Decode images in threads, with a progress bar on a terminal.

    Returns:
        What is wrong with each of the images that cannot be decoded.
    """
    ordered = sorted(paths)
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    found: dict[str, str] = {}
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        warnings.simplefilter("ignore")
        task = progress.add_task("", total=len(ordered))
        for part in _parts(ordered):
            for path, reason in zip(part, pool.map(_why_unreadable, part), strict=True):
                if reason:
                    found[path] = reason
                progress.advance(task)
    return found


def _parts(paths: list[str]) -> Iterator[list[str]]:
    remaining = iter(paths)
    while part := list(islice(remaining, DECODED_TOGETHER)):
        yield part


def _why_unreadable(path: str) -> str:
    """What is wrong with an image file; empty where it can be decoded."""
    try:
        open_image(path)
    except ImageError as error:
        size = os.path.getsize(path) if os.path.exists(path) else None
        reason = str(error).removeprefix(f"Image {path} ").removeprefix("cannot be read: ").rstrip(".")
        return "the file is empty" if size == 0 else reason
    return ""


def _print_table(reports: list[SetReport], console: Console) -> None:
    table = Table(box=box.SIMPLE)
    table.add_column("set", no_wrap=True)
    for title in ("images", "classes", "per class"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("found / published", no_wrap=True)
    for title in ("missing", "unreadable"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for report in reports:
        table.add_row(*(Text(cell) for cell in _cells(report)))
    print_table(table, console)


def _cells(report: SetReport) -> list[str]:
    counts = [count for count in report.images_per_class().values() if count] or [0]
    least, most = min(counts), max(counts)
    found = report.found()
    splits = [
        f"{'' if split == 'all' else split + ' '}{count:,} / {report.published[split]:,}"
        if split in report.published
        else f"{'' if split == 'all' else split + ' '}{count:,}"
        for split, count in found.items()
    ]
    return [
        report.name,
        f"{len(report.index.paths):,}",
        f"{sum(map(bool, report.images_per_class().values())):,}",
        f"{least:,}" if least == most else f"{least:,}..{most:,}",
        " · ".join(splits),
        f"{len(report.index.missing):,}",
        "not tried" if report.unreadable is None else f"{report.unreadable:,}",
        report.verdict,
    ]


def _print_findings(report: SetReport, console: Console, *, classes: bool, most: int | None) -> None:
    lines = []
    for kind, findings in (("fault", report.faults), ("note", report.notes)):
        for finding in findings:
            lines.append(f"  {kind:6}{finding.text}")
            lines += [f"          {case}" for case in finding.cases[:most]]
            rest = len(finding.cases) - (len(finding.cases) if most is None else most)
            lines += [f"          and {rest:,} more"] if rest > 0 else []
    if classes:
        lines += ["  images per class", *(f"    {n:>7,}  {name}" for name, n in report.images_per_class().items())]
    for line in [report.name, *lines] if lines else []:
        console.print(Text(line), soft_wrap=True)
