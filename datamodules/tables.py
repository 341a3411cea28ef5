"""Published data sets whose labels are in a table."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

from ..errors import DtrapError, nearest
from ..keywords import Unpack
from .few_shot import AnyShotOptions
from .findings import COMPLETE, Finding, Findings, counted, missing_images, relative
from .grouped_draws import note_split_groups
from .groups import UnusedGroups
from .index import ImageIndex, first_of, listing
from .places import is_image, plain_name, unread
from .published import PublishedDataModule
from .text_files import read_csv
from .walk import list_images

EPISODES = 400  # of which `dtrap data check` counts the groups on two sides
CORRECT = "Correct the row or download the table again"


class LabeledRow(NamedTuple):
    """A usable row: line of the file, name of the image, label, and its group where the table has it."""

    line: int
    name: str
    label: int
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Content of a csv file.

    Attributes:
        title: Path as seen from the root.
        columns: Names of the columns.
        rows: Line of the file, name of the image and cells by column of each row; every image once.
        count: Number of rows, also of those with a faulty name.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[int, str, dict[str, str]]]
    count: int


class AllOptions(AnyShotOptions, total=False):
    """All arguments of `FewShotDataModule` except `root`."""

    shot: int


class PublishedTableDataModule(PublishedDataModule):
    """A published set with a table of labels and folders of images.

    Args:
        root: Folder of the data set.
        group: Column that says which images belong together, such as the patient: no such group is on both sides of
            support and query, of training and test, or of validation. None for the published protocol, which does not
            look at it.
        **options: Arguments of `FewShotDataModule`.

    Raises:
        DtrapError: The data set has no such column.

    Attributes:
        tables: Places of the table under the root.
        other_tables: Names of tables that stand in for it.
        image_folders: Places of the images; the first one is the official place.
        ending: What a file's name has in addition to the name in the table.
        classes: Class names.
        group_column: What `group` may be, and what such a group is called.
        groups_in: Sentence on the file that has the groups.
        relatives: Tables that are often taken for this set's, by their name in lower case, and what they are.
    """

    tables: ClassVar[Sequence[str]]
    other_tables: ClassVar[Sequence[str]] = ()
    image_folders: ClassVar[Sequence[str]]
    ending: ClassVar[str] = ""
    classes: ClassVar[Sequence[str]]
    group_column: ClassVar[tuple[str, str]]
    groups_in: ClassVar[str]
    relatives: ClassVar[Mapping[str, str]] = {}

    def __init__(self, root: str | Path, *, group: str | None = None, **options: Unpack[AllOptions]) -> None:
        super().__init__(root, **options)
        column = self.group_column[0]
        if group is not None and _plain(group) != _plain(column):
            raise DtrapError(f"{self.title}: group is '{group}'; expected {column}, or null to draw without groups.")
        self.group = group

    @abstractmethod
    def find_image_folders(self, table: Path | None) -> list[Path]:
        """Return the folders of images that are there."""

    @abstractmethod
    def read_rows(self, table: Path, findings: Findings) -> Iterable[LabeledRow]:
        """Read the rows with a label and record the faulty ones."""

    def with_groups(self, rows: list[LabeledRow], table: Path) -> list[LabeledRow]:
        """Return the rows with the groups that other files next to the table have."""
        return rows

    def read(self, findings: Findings) -> ImageIndex:
        """Read the table and the names of the image files."""
        table = first_of(self.root, self.tables) or self._find_table()
        folders = self.find_image_folders(table)
        images = self.image_folders[0]
        if table is None:
            for relative_of in self.tree.files_called(self.relatives):
                what = self.relatives[plain_name(relative_of.name)]
                raise DtrapError(f"{self.title}: {relative_of} is {what}. Expected {Path(self.tables[0]).name}.")
            if not folders:
                raise self.nothing(self.tables, "ground-truth table")
            text = f"the table {Path(self.tables[0]).name} is missing; the image folder {images} is there"
            findings.fault(Finding(text), COMPLETE)
            return ImageIndex([], [], [])
        rows = sorted(self.read_rows(table, findings), key=lambda row: row.name)
        listed = [path for folder in folders for path in list_images(folder)]
        # The official ending counts; of others the last one.
        listed.sort(key=lambda path: path.lower().endswith(self.ending))
        files = {self._id_of(path): path for path in listed}
        twice = [f"{relative(path, self.root)}: not used" for path in listed if files[self._id_of(path)] != path]
        findings.note(counted(twice, "file has the name of another image", "files have the names of other images"))
        folders, files = self._with_other_folders(folders, files, {row.name for row in rows}, findings)
        if not folders:
            text = f"the image folder {images} is missing; the table {relative(table, self.root)} is there"
            looked_for = (
                f"Looked for: {', '.join(self.image_folders[:3])}, and for the images up to five folders lower."
            )
            findings.fault(Finding(text), looked_for + (unread(self.tree).removesuffix(".") or f" {COMPLETE}"))
        # Without an image folder these are the names alone.
        absent = {str(Path(*folders[:1], row.name + self.ending)): row for row in rows if row.name not in files}
        index = ImageIndex(
            paths=[files[row.name] for row in rows if row.name in files],
            labels=[row.label for row in rows if row.name in files],
            class_names=list(self.classes),
            roots=tuple(map(str, folders)),
            missing=tuple(absent),
        )
        index = self._with_groups(index, [row for row in rows if row.name in files], table)
        if not findings.stop:
            findings.note(self._split_groups(index))
        if folders:
            title = relative(table, self.root)
            places = {path: f"{title}, line {row.line} ({self.classes[row.label]})" for path, row in absent.items()}
            missing_images(findings, index, self.tree, places)
        return index

    def _with_groups(self, index: ImageIndex, rows: list[LabeledRow], table: Path) -> ImageIndex:
        """Return the index with the groups of its images, if they are asked for.

        Raises:
            DtrapError: They are asked for, and no file has them.
        """
        groups = [row.group for row in self.with_groups(rows, table)]
        column, unit = self.group_column
        if not any(groups):
            if self.group is not None and rows:
                raise DtrapError(f"{self.title}: no {column} is known of the images of {table}. {self.groups_in}")
            return index
        if self.group is None:
            self.unused_groups = UnusedGroups(groups, column, unit)
            return index
        without = groups.count("")
        note = (f"{without:,} image(s) have no {column}: each is a group of its own",) if without else ()
        return replace(index, groups=groups, notes=(*index.notes, *note))

    def _split_groups(self, index: ImageIndex) -> Finding | None:
        """Return how many groups the default episodes have on two sides, for `dtrap data check`."""
        if self.unused_groups is None:
            return None
        episodes = type(self)(self.root)
        # Assigned, so that the set is not read again.
        episodes.index, episodes.unused_groups = index, self.unused_groups
        several = sum(count > 1 for group, count in Counter(self.unused_groups.of).items() if group)
        column, unit = self.group_column
        text = f"{several:,} {unit}s have several images ({column})"
        with suppress(DtrapError):  # too few images for such episodes
            note = note_split_groups(
                episodes, map(episodes.sampler.draw, range(EPISODES)), episodes.description + " episode"
            )
            text += f"; {note}" if note else ""
        return Finding(text) if several else None

    def _find_table(self) -> Path | None:
        """Return the table some levels lower or under a name in another case.

        Raises:
            DtrapError: There are several.
        """
        for name in dict.fromkeys((*(Path(table).name for table in self.tables), *self.other_tables)):
            found = self.tree.files_called([name])
            if len(found) > 1:
                several = ", ".join(map(str, found[:3]))
                raise DtrapError(f"{self.title}: several tables: {several}. Give one: --data.root {found[0].parent}")
            if found:
                return found[0]
        return None

    def _id_of(self, path: str | Path) -> str:
        """Return what the table calls an image file."""
        return Path(path).stem if self.ending else Path(path).name

    def _with_other_folders(
        self, folders: list[Path], files: dict[str, str], names: set[str], findings: Findings
    ) -> tuple[list[Path], dict[str, str]]:
        """Return folders and image files, with those of other folders below the root that hold images of the table.

        Raises:
            DtrapError: An image is in two of them.
        """
        lost = names.difference(files)
        if not lost:
            return folders, files
        holding = []
        more: dict[str, str] = {}
        for place in self.tree.places:
            own = {self._id_of(name): str(place.path / name) for name in place.files if is_image(name)}
            own = {name: path for name, path in own.items() if name in lost}
            twice = next((name for name in own if name in more), None)
            if twice is not None:
                raise DtrapError(
                    f"{self.title}: image {twice} is in two folders: {Path(more[twice]).parent} and {place.path}. "
                    "Remove one of them, or give the folder of one set: --data.root FOLDER"
                )
            more |= own
            holding += [place.path] if own else []
        used = [folder for folder in folders if names.intersection(map(self._id_of, list_images(folder)))]
        if holding:
            findings.note(Finding("images are read from", [str(path) for path in holding]))
        return (used or ([] if holding else folders)) + holding, files | more


def read_table(
    path: Path, root: Path, image: str, labels: Iterable[str], findings: Findings, *, others_allowed: bool = False
) -> Table:
    """Read a csv file, its columns found by name, and record rows without an image or with one for the second time.

    Args:
        path: The file.
        root: Folder that its path is shown from.
        image: Column of the image names.
        labels: Columns of the labels.
        findings: Where faulty rows are recorded.
        others_allowed: Whether there may be further columns.

    Raises:
        DtrapError: It is not a csv file, has no rows, or a column is missing or unexpected.
    """
    expected = [image, *labels]
    columns, lines, unusual = read_csv(path, expected)
    cells = [(line, dict(zip(columns, row, strict=False))) for line, row in lines]
    _check_columns(path, columns, expected, others_allowed)
    if not cells:
        raise DtrapError(f"{path} has no rows. Download it again.")
    title = relative(path, root)
    if unusual:
        findings.note(Finding(f"{title} was read although {' and '.join(unusual)}"))
    first: dict[str, int] = {}
    nameless, twice, rows = [], [], []
    for line, row in cells:
        name = row.get(image, "")
        if not name:
            nameless.append(f"{title}, line {line}: no image name")
        elif name in first:
            twice.append(f"{title}, line {line}: {name} is in line {first[name]} already")
        else:
            first[name] = line
            rows.append((line, name, {column: row.get(column, "") for column in columns}))
    findings.fault(counted(nameless, "row has no image name", "rows have no image name"), CORRECT)
    findings.fault(counted(twice, "row names an image again", "rows name an image again"), "Remove all but one")
    return Table(title, columns, rows, len(cells))


def _check_columns(path: Path, found: Sequence[str], expected: Sequence[str], others_allowed: bool) -> None:
    """Raise a DtrapError unless each expected column is there once, and no other unless these are allowed."""
    others = [column for column in found if column not in expected]
    for name in expected:
        if name not in found:
            raise DtrapError(
                f"{path}: column '{name}' is missing.{nearest(name, others)} Expected {', '.join(expected)}; "
                f"found {listing(found, 20)}. Use the official file."
            )
        if found.count(name) > 1:
            raise DtrapError(f"{path}: there are {found.count(name)} columns '{name}'. Use the official file.")
    if others and not others_allowed:
        raise DtrapError(
            f"{path}: unknown column '{others[0]}'. Expected {', '.join(expected)}. Remove it or use the official file."
        )


def _plain(name: str) -> str:
    """Return the name of a column without case, spaces and underscores: "Patient ID" is patient_id."""
    return "".join(filter(str.isalnum, name.casefold()))
