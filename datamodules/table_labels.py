"""Labels in the cells of a user's table, and the names of their classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import DtrapError, nearest, visible
from ..files import printable
from .index import listing, normal
from .table_columns import CLASS_NAME_COLUMNS, Columns, number_of
from .table_file import UserTable


@dataclass(frozen=True)
class Labels:
    """Labels of the rows and their classes.

    Attributes:
        of: Number of the class of each row, or why it has none.
        class_names: Names of the classes.
        notes: What a user should know.
    """

    of: Sequence[int | str]
    class_names: Sequence[str]
    notes: tuple[str, ...] = ()


def read_labels(table: UserTable, columns: Columns, names: Mapping[str, str]) -> Labels:
    """Return the class of each row; classes are sorted by their label, as numbers where all are numbers.

    Args:
        table: The table.
        columns: Its columns.
        names: Class names of labels; several labels may have the same one.

    Raises:
        DtrapError: A name is given for a label that is not there, or two classes have the same name for a model.
    """
    one_hot = len(columns.labels) > 1
    texts = _one_hot(table, columns.labels) if one_hot else table.frame[columns.labels[0]].tolist()
    cells: list[str | _WrongRow] = [normal(text) if isinstance(text, str) else text for text in texts]
    values = {cell for cell in cells if isinstance(cell, str) and cell}
    numbers = {value: number_of(value) for value in values}
    numeric = bool(values) and all(re.fullmatch(r"-?\d+", number) for number in numbers.values())
    if numeric:
        cells = [numbers.get(cell, cell) if isinstance(cell, str) else cell for cell in cells]
        values = {*numbers.values()}
    alone = {value for value in values if "|" not in value or value in names}
    several = {value: [part.strip() for part in value.split("|")] for value in values - alone}
    wrong = {
        value: _WrongRow(f"several labels: {listing(parts, 4)}; expected one, or a name for '{value}' in class_names")
        for value, parts in several.items()
        if alone.intersection(parts)
    }
    cells = [wrong.get(cell, cell) for cell in cells]
    values -= wrong.keys()
    order = sorted(values, key=int) if numeric else sorted(values)
    given, notes = _given_names(table, columns, names, order, cells, numeric)
    name_of = {value: given.get(value, value) for value in order}
    class_names = list(dict.fromkeys(name_of.values()))
    _check_names(table, name_of, cells)
    merged = Counter(name_of.values())
    notes += [
        f"{table.title}: {listing([value for value in order if name_of[value] == name])} are one class, '{name}'"
        for name, count in merged.items()
        if count > 1
    ]
    label_of = {value: class_names.index(name) for value, name in name_of.items()}
    of = [cell.reason if isinstance(cell, _WrongRow) else label_of.get(cell, "no label") for cell in cells]
    return Labels(of, class_names, tuple(map(visible, notes)))


@dataclass(frozen=True)
class _WrongRow:
    """Why the columns of a row do not say one class."""

    reason: str


def _one_hot(table: UserTable, columns: Sequence[str]) -> list[str | _WrongRow]:
    """Return the column with the only 1 of each row."""
    found: list[str | _WrongRow] = []
    for cells in table.frame[list(columns)].itertuples(index=False):
        numbers = [number_of(cell) for cell in cells]
        ones = [name for name, number in zip(columns, numbers, strict=True) if number == "1"]
        odd = next((pair for pair in zip(columns, numbers, strict=True) if pair[1] not in ("0", "1", "")), None)
        if odd is not None:
            found.append(_WrongRow(f"expected 0 or 1 in column {odd[0]}, found '{odd[1]}'"))
        elif len(ones) > 1:
            found.append(_WrongRow(f"expected one 1, found {' and '.join(ones)}"))
        else:
            found.append(ones[0] if ones else "")
    return found


def _given_names(
    table: UserTable,
    columns: Columns,
    names: Mapping[str, str],
    order: Sequence[str],
    cells: Sequence[object],
    numeric: bool,
) -> tuple[dict[str, str], list[str]]:
    """Return the class names of labels that the user or another column of the table gives, and notes."""
    given = {number_of(key) if numeric else normal(key.strip()): name.strip() for key, name in names.items()}
    for key, name in given.items():
        if key not in order:
            raise DtrapError(
                f"class_names has the label '{key}', which {table.title} does not have.{nearest(key, order)} Its "
                f"labels: {visible(listing(order, 12))}."
            )
        if not name:
            raise DtrapError(f"class_names gives the label '{key}' an empty name. Give it a name for the prompt.")
    if not numeric or given:
        return given, []
    paired = _names_beside(table, columns, cells)
    if paired:
        column, found = paired
        return found, [f"{table.title}: the names of the labels are those of column '{column}'"]
    example = ", ".join(f"{value}: NAME" for value in order[:2])
    return {}, [
        f"{table.title}: the labels are numbers, which say nothing to the model; name the classes: --data.class_names "
        f"'{{{example}}}'"
    ]


def _names_beside(table: UserTable, columns: Columns, cells: Sequence[object]) -> tuple[str, dict[str, str]] | None:
    """Return a column with one name for each number, and these names."""
    used = {columns.path, *columns.labels, columns.split, columns.group}
    for column in table.frame.columns:
        if column in used or column.casefold().replace(" ", "_") not in CLASS_NAME_COLUMNS:
            continue
        pairs = {(str(cell), normal(name)) for cell, name in zip(cells, table.frame[column], strict=True) if cell}
        found = dict(pairs)
        if len(pairs) == len(found) == len({*found.values()}) and all(found.values()):
            return column, found
    return None


def _check_names(table: UserTable, name_of: Mapping[str, str], cells: Sequence[object]) -> None:
    """Raise a DtrapError for names that a tokenizer cannot tell apart, and for those that cannot be written."""
    first: dict[str, str] = {}
    counts = Counter(cells)
    for value, name in name_of.items():
        if printable(name) != name or visible(name) != name:
            raise DtrapError(f"table {table.path}: label '{visible(name)}' has characters that cannot be printed.")
        other = first.setdefault(" ".join(name.casefold().split()), value)
        if name_of[other] != name:
            raise DtrapError(
                f"table {table.path}: the model reads the labels '{other}' ({counts[other]:,} rows) and '{value}' "
                f"({counts[value]:,} rows) as the same text. If they are one class: --data.class_names "
                f"\"{{'{other}': '{name}'}}\"; else rename one."
            )
