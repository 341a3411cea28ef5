"""Which column of a user's table has the paths, the labels, the splits and the groups."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import DtrapError, nearest, visible
from .index import listing
from .table_file import UserTable
from .table_splits import split_of
from .walk import IMAGE_ENDINGS

# What a column may be called, in any case and with spaces for underscores; the first is the format's own.
NAMES = {
    "path": (
        *("path", "image_path", "img_path", "file_path", "filepath", "file_name", "filename", "file", "image", "img"),
        *("image_name", "img_name", "image_id", "img_id", "image_file", "image_index", "id"),
    ),
    "label": (
        *("label", "labels", "class", "class_name", "class_label", "category", "target", "diagnosis", "dx", "species"),
        *("label_name", "finding_labels", "y"),
    ),
    "split": ("split", "set", "subset", "partition", "phase"),
    "group": ("group",),
}
# Columns that usually say which images belong together; they are used only if asked for.
LIKELY_GROUPS = (
    *("patient_id", "patient", "patientid", "subject_id", "subject", "lesion_id", "case_id", "specimen_id"),
    *("sequence_id", "burst_id", "participant_id", "individual_id", "group_id", "groups"),
)
CLASS_NAME_COLUMNS = ("class_name", "label_name", "name", "class", "category", "species", "label_text")
OPTIONS = {"path": "path_column", "label": "label_column", "split": "split_column", "group": "group"}
UNUSED = ""  # given for a column that is not to be used


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used.

    Attributes:
        path: Paths of the images.
        labels: The column of the labels, or several with one 1 in each row.
        split: "train", "val" or "test"; None without splits.
        group: What images belong together; None without groups.
        likely_group: A column that may say so and is not used; None if there is none.
        notes: What was guessed.
    """

    path: str
    labels: tuple[str, ...]
    split: str | None
    group: str | None
    likely_group: str | None
    notes: tuple[str, ...] = ()


def find_columns(
    table: UserTable,
    path: str | None,
    label: str | Sequence[str] | None,
    split: str | None,
    group: str | None,
) -> Columns:
    """Return the columns that are given, and of the others those that are called as usual.

    Args:
        table: The table.
        path: Column of the paths; None to guess it.
        label: Column of the labels, or several with one 1 in each row; None to guess it.
        split: Column of the splits; "" for none, None to guess it.
        group: Column of the groups; "" for none, None for the column `group` if there is one.

    Raises:
        DtrapError: There is no such column, or no column of paths or labels is found.
    """
    names = [name for name in table.frame.columns if name]
    if any(os.path.splitext(name)[1].lower() in IMAGE_ENDINGS for name in names):
        raise DtrapError(
            f"table {table.path} has no header: its first line is '{visible(listing(names, 4))}'. Write the names of "
            "the columns above it, such as path,label"
        )
    found_path = _given(table, "path", path) or _called(names, "path") or _with_endings(table)
    if found_path is None:
        raise _no_column(table, "path", "paths of the images")
    given_labels = (label,) if isinstance(label, str) else tuple(label or ())
    labels = tuple(name for each in given_labels if (name := _given(table, "label", each)))
    found_split = _optional(table, "split", split, names)
    not_splits = split is None and found_split is not None and not _says_splits(table, found_split)
    found_group = _optional(table, "group", group, names)
    taken = {found_path, found_split, found_group}
    notes = (f"{table.title}: column '{found_split}' has other values than splits and is not used",) * not_splits
    found_split = None if not_splits else found_split
    free = [name for name in names if name not in taken]
    if not labels:
        labels = _guessed_labels(table, free)
    if found_path in labels:
        raise DtrapError(f"table {table.path}: column '{visible(found_path)}' is given for paths and for labels.")
    likely = None
    if found_group is None and group is None:
        likely = next((name for wanted in LIKELY_GROUPS for name in free if _plain(name) == _plain(wanted)), None)
    columns = Columns(found_path, labels, found_split, found_group, likely)
    asked = {"path": path, "label": label, "split": split, "group": group}
    return Columns(found_path, labels, found_split, found_group, likely, (*_notes(table, columns, asked), *notes))


def _notes(table: UserTable, columns: Columns, asked: Mapping[str, object]) -> tuple[str, ...]:
    """Say which columns were taken where not all have the names of the format."""
    one_hot = len(columns.labels) > 1
    labels = f"the columns {listing(columns.labels, 8)}, one of which is 1" if one_hot else repr(columns.labels[0])
    used = {"path": repr(columns.path), "label": labels, "split": columns.split, "group": columns.group}
    own = {"path": columns.path, "label": columns.labels[0], "split": columns.split, "group": columns.group}
    guessed = [
        role for role, name in own.items() if name is not None and asked[role] is None and (name != role or one_hot)
    ]
    if not guessed:
        return ()
    words = {"path": "paths", "label": "labels", "split": "splits", "group": "groups"}
    shown = [
        f"{words[role]} from {used[role] if role in ('path', 'label') else repr(used[role])}"
        for role in own
        if used[role]
    ]
    options = " or ".join(f"--data.{OPTIONS[role]}" for role in guessed)
    return (visible(f"{table.title}: {', '.join(shown)}; {options} for another column"),)


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _given(table: UserTable, role: str, name: str | None) -> str | None:
    """Return a column that the user named; None if there is no name.

    Raises:
        DtrapError: The table has no such column.
    """
    if not name:
        return None
    names = [column for column in table.frame.columns if column]
    near = [column for column in names if _plain(column) == _plain(name)]
    if name in names or len(near) == 1:
        return name if name in names else near[0]
    raise DtrapError(
        f"table {table.path} has no column '{name}' (--data.{OPTIONS[role]}).{nearest(name, names)} Its columns: "
        f"{visible(listing(names, 12))}."
    )


def _called(names: Sequence[str], role: str) -> str | None:
    """Return the first column that is called as is usual for its role."""
    return next((name for wanted in NAMES[role] for name in names if _plain(name) == _plain(wanted)), None)


def _optional(table: UserTable, role: str, given: str | None, names: Sequence[str]) -> str | None:
    return None if given == UNUSED else _given(table, role, given) or _called(names, role)


def _says_splits(table: UserTable, column: str) -> bool:
    """Whether a column that was only guessed has splits; one that is called split must have them."""
    return column.casefold() == "split" or all(map(split_of, filter(None, table.frame[column].unique())))


def _with_endings(table: UserTable) -> str | None:
    """Return the first column whose cells mostly have the ending of an image file."""
    for name in filter(None, table.frame.columns):
        first = table.frame[name].head(100)
        images = [cell for cell in first if os.path.splitext(cell)[1].lower() in IMAGE_ENDINGS]
        if 2 * len(images) > len(first):
            return str(name)
    return None


def _guessed_labels(table: UserTable, free: Sequence[str]) -> tuple[str, ...]:
    """Return the column of the labels, or the columns of zeros and ones.

    Raises:
        DtrapError: Neither is there, and more than one column may hold labels.
    """
    called = _called(free, "label")
    if called is not None:
        return (called,)
    binary = tuple(name for name in free if _is_binary(table, name))
    if len(binary) > 1:
        return binary
    if len(free) == 1:
        return (free[0],)
    raise _no_column(table, "label", "labels")


def _is_binary(table: UserTable, name: str) -> bool:
    return {number_of(cell) for cell in table.frame[name].unique()} <= {"0", "1"}


def number_of(cell: str) -> str:
    """Return a cell as text, whole numbers without zeros before or after a point: "1.0" is "1"."""
    try:
        number = float(cell)
    except ValueError:
        return cell
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 and cell.isascii() else cell


def _no_column(table: UserTable, role: str, what: str) -> DtrapError:
    names = [name for name in table.frame.columns if name]
    return DtrapError(
        f"table {table.path}: no column of {what} is found among {visible(listing(names, 12))}. Expected '{role}', or "
        f"name it: --data.{OPTIONS[role]} COLUMN"
    )
