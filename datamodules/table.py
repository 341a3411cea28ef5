"""A user's own images whose classes are in a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote

from ..errors import DtrapError, visible
from ..keywords import Unpack
from .copied_images import without_copies
from .few_shot import AnyShotOptions
from .folder import MOST_COMPARED, FolderDataModule
from .groups import UnusedGroups
from .index import SPLITS, ImageIndex, listing, no_folder
from .places import FolderTree, unread
from .table_columns import Columns, find_columns
from .table_file import UserTable, read_user_table
from .table_images import TableImages
from .table_labels import Labels, read_labels
from .table_splits import read_splits

# What an image has in the table: label, split and group.
Entry = tuple[int, str, str]


class TableDataModule(FolderDataModule):
    """A user's own images with a table of their classes: one task over all of them, or episodes if `shot` is given.

    Format: a CSV or TSV file with a header, or a Parquet file where pyarrow is installed, with the columns `path` and
    `label`, and perhaps `split` (train, val or test) and `group`. Paths are relative to the root, or absolute and
    inside it, with or without the ending of the file. Labels are texts or numbers, or several columns one of which is
    1. Other usual names of columns are recognized, and which were taken is logged.

    With splits, images of train are support images, those of test queries and those of val are for validation; see
    `FolderDataModule` for what is the same with and without a table.

    Args:
        root: Folder of the images.
        table: The table.
        shot: Support images per class K of episodes or of the all-way protocol; None for one task over all images.
        path_column: Column of the paths; None for `path` or another usual name.
        label_column: Column of the labels, or a list of columns one of which is 1; None for `label` or another usual
            name, or for all further columns if these are 0 and 1.
        split_column: Column of the splits; "" to use none, None for `split` or another usual name if there is one.
        group: Column that says which images belong together, such as the patient: no such group is on both sides of
            support and query, of what is held out, or of validation. "" to use none, None for `group` if there is one.
        class_names: Class names of labels, such as those of numbers; labels with the same name are one class.
        held_out: One task: share in (0, 1) of each class, rounded, that is kept as queries.
        repeats: One task: number of times that images are held out; see `FolderDataModule`.
        **options: Further arguments of `FewShotDataModule`.

    Raises:
        DtrapError: An argument is out of range, or two arguments exclude each other.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        table: str | Path | None = None,
        shot: int | None = None,
        path_column: str | None = None,
        label_column: list[str] | str | None = None,
        split_column: str | None = None,
        group: str | None = None,
        class_names: dict[str, str] | None = None,
        held_out: float | None = None,
        repeats: int | None = None,
        **options: Unpack[AnyShotOptions],
    ) -> None:
        super().__init__(
            root,
            shot=shot,
            query_root=None,
            held_out=held_out,
            repeats=repeats,
            split_folders=False,
            class_names=class_names,
            **options,
        )
        if table is None:
            raise DtrapError("table is not given. Name the file with the columns path and label: --data.table FILE")
        self.table = Path(table).expanduser()
        self.path_column, self.label_column, self.split_column = path_column, label_column, split_column
        self.group = group

    def scan(self) -> ImageIndex:
        """Read the table and find its images; those to train on come first, each part by path."""
        if not self.root.is_dir():
            raise DtrapError(f"{self.root} {no_folder(self.root)}. Set data.root to the folder of the images.")
        table = read_user_table(self.table)
        columns = find_columns(table, self.path_column, self.label_column, self.split_column, self.group)
        labels = read_labels(table, columns, self.names_of_folders)
        splits = read_splits(table, columns.split)
        rows = _Rows(table, labels, splits, columns)
        images = TableImages(self.root)
        rows.read(images)
        if not rows.found:
            raise _no_images(self.root, rows)
        if len(labels.class_names) < 2 and not rows.faults:
            raise DtrapError(
                f"table {self.table} has one class only, '{labels.class_names[0]}', in {' and '.join(columns.labels)}. "
                "Expected two or more; name another column of labels: --data.label_column COLUMN"
            )
        has_splits = self._checked_splits(rows, splits)
        paths = sorted(rows.found, key=lambda path: (SPLITS.index(rows.found[path][1]) if has_splits else 0, path))
        found = [rows.found[path] for path in paths]
        index = ImageIndex(
            paths=paths,
            labels=[label for label, _, _ in found],
            class_names=list(labels.class_names),
            roots=(str(self.root),),
            notes=(*table_notes(table), *columns.notes, *labels.notes, *rows.notes(images)),
            splits=[split for _, split, _ in found] if has_splits else None,
            faults=tuple(rows.faults),
            groups=[group for _, _, group in found] if columns.group or columns.likely_group else None,
        )
        return self._with_groups(self._without_table_copies(index), columns)

    def _checked_splits(self, rows: _Rows, splits: Sequence[str] | None) -> bool:
        """Return whether the splits are used; raise a DtrapError if they do not fit to the task."""
        counts = Counter(split for _, split, _ in rows.found.values())
        if splits is None or counts.keys() <= {"train"}:
            return False
        without = "read the table without splits: --data.split_column ''"
        numbers = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS if counts[split])
        if not counts["train"]:
            raise DtrapError(f"table {self.table} has no image to train on: {numbers}. Add rows of train, or {without}")
        if self.held_out is not None and counts["test"]:
            raise DtrapError(
                f"table {self.table} has test images ({numbers}), and a share of the training images is to be held out "
                f"as well. Remove held_out and repeats, or {without}"
            )
        if self.fixed_numbers and self.sampler.has_query and not counts["test"]:
            raise DtrapError(
                f"table {self.table} has no test image to draw queries from: {numbers}. Add rows of test, or {without}"
            )
        return True

    def _without_table_copies(self, index: ImageIndex) -> ImageIndex:
        """Note images that are there twice; those of other splits that are training images too may be left out."""
        tested = self.held_out is not None or index.splits is not None
        if not self.compares_files or (not tested and len(index.paths) > MOST_COMPARED):
            return index
        support = len(index.paths) if index.splits is None else index.splits.count("train")
        skips = self.bad_images == "skip"
        index, self._copies = without_copies(index, support, self.root, "the val and test rows", leave_out=skips)
        return index

    def _with_groups(self, index: ImageIndex, columns: Columns) -> ImageIndex:
        """Return the index with the groups that draws keep together; those that no one asked for are only counted."""
        if index.groups is None:
            return index
        if columns.group is None:
            option = columns.likely_group or ""
            unit = option.casefold().removesuffix("id").strip(" _-") or "group"
            self.unused_groups = UnusedGroups(index.groups, quote(option), unit)
            several = sum(count > 1 for group, count in Counter(index.groups).items() if group)
            note = (
                f"column '{option}' is not used: {several:,} of its values have several images; --data.group "
                f"{quote(option)} keeps the images of each together"
            )
            return replace(index, groups=None, notes=(*index.notes, *([visible(note)] if several else ())))
        without = index.groups.count("")
        notes = [f"{without:,} rows have no {columns.group}: each is a group of its own"] if without else []
        if not self.fixed_numbers and index.splits is not None:
            self._check_split_groups(index, index.splits, index.groups, columns.group)
        return replace(index, notes=(*index.notes, *map(visible, notes)))

    def _check_split_groups(self, index: ImageIndex, splits: list[str], groups: list[str], column: str) -> None:
        """Raise a DtrapError if a group is in several splits of the one task."""
        places: dict[str, dict[str, int]] = {}
        for position, (group, split) in enumerate(zip(groups, splits, strict=True)):
            if group:
                places.setdefault(group, {}).setdefault(split, position)
        crossing = {group: found for group, found in places.items() if len(found) > 1}
        if crossing:
            group, found = next(iter(crossing.items()))
            where = " and ".join(f"{split} ({index.relative(found[split])[2:]})" for split in SPLITS if split in found)
            raise DtrapError(
                f"table {self.table}: {len(crossing):,} of {len(places):,} groups of column '{visible(column)}' are in "
                f"several splits, such as '{visible(group)}' in {visible(where)}. Correct the splits, hold out images "
                "instead (--data.split_column '' --data.held_out 0.2), or ignore the groups: --data.group ''"
            )


def table_notes(table: UserTable) -> list[str]:
    """Return what is unusual about the form of a table, as notes."""
    return [f"{table.title}: {note}" for note in table.notes]


@dataclass
class _Rows:
    """The rows of a table and the images that they name.

    Attributes:
        found: What each image has in the table, by its path.
        faults: (image, reason) of rows that cannot be used.
        repeated: Places of rows that name an image again with the same entry.
        named: The images of all rows.
    """

    table: UserTable
    labels: Labels
    splits: Sequence[str] | None
    columns: Columns
    found: dict[str, Entry] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    named: set[str] = field(default_factory=set)

    def read(self, images: TableImages) -> None:
        """Find the images of all rows; an image whose rows contradict each other is not used."""
        group = self.columns.group or self.columns.likely_group
        groups = self.table.frame[group].tolist() if group else [""] * len(self.labels.of)
        first: dict[str, int] = {}
        contradicted: set[str] = set()
        for row, cell in enumerate(self.table.frame[self.columns.path].tolist()):
            label, split = self.labels.of[row], self.splits[row] if self.splits else ""
            path, reason = images.find(cell) if cell else (None, "no path")
            self.named.update([path] if path else ())
            if path is None or isinstance(label, str) or (self.splits and not split):
                text = reason if path is None else label if isinstance(label, str) else "no split"
                self.faults.append((cell or "(empty)", f"{self.table.place(row)}: {text}"))
                continue
            entry = (label, split, groups[row])
            earlier = first.setdefault(path, row)
            if earlier == row:
                self.found[path] = entry
            elif self.found[path] == entry:
                self.repeated.append(f"{self.table.place(row)} ({cell})")
            elif path not in contradicted:
                contradicted.add(path)
                self.faults.append((cell, self._contradiction(self.found[path], entry, earlier, row)))
        for path in contradicted:
            del self.found[path]

    def _contradiction(self, one: Entry, other: Entry, first: int, second: int) -> str:
        """Return in what two rows of an image differ."""
        names = self.labels.class_names
        pairs = (
            ("label", names[one[0]], names[other[0]]),
            ("split", one[1], other[1]),
            ("group", one[2], other[2]),
        )
        what, before, after = next(pair for pair in pairs if pair[1] != pair[2])
        return (
            f"{self.table.title}: {what} '{before}' in {self.table.places[first]}, '{after}' in "
            f"{self.table.places[second]}"
        )

    def notes(self, images: TableImages) -> list[str]:
        """Return what a user should know about rows and images that are used or not."""
        title, unused = self.table.title, images.unused(self.named)
        rows = (
            [f"{len(self.repeated):,} more rows of images that are named before: {listing(self.repeated, 3)}"]
            if self.repeated
            else []
        )
        rows += [
            f"{title}: {_images(cells)} found {unusual}: {listing(cells, 3)}"
            for unusual, cells in images.unusual.items()
        ]
        rows += [f"{title}: {_images(unused)} without a row, not used: {listing(unused, 3)}"] if unused else []
        return [visible(row) for row in rows]


def _images(of: Sequence[str]) -> str:
    return f"{len(of):,} image{'' if len(of) == 1 else 's'}"


def _no_images(root: Path, rows: _Rows) -> DtrapError:
    """Return the error for a table none of whose rows has an image and a label."""
    cell, reason = rows.faults[0]
    files = unread(FolderTree(root)) or " Give the folder that the paths start from: --data.root FOLDER"
    return DtrapError(
        f"None of the {len(rows.faults):,} rows of {rows.table.path} has an image under {root} and a label. The first: "
        f"{visible(cell)} ({visible(reason)}).{files}"
    )
