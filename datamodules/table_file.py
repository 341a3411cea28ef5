"""Read a user's table of images as text: CSV with any usual separator, TSV, or Parquet."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DtrapError, first_line, visible
from .text_files import LARGEST, LONGEST, SEPARATORS, read_text

if TYPE_CHECKING:
    import pandas as pd

_EXAMPLE = "a table with the columns path and label, such as\n  path,label\n  a.jpg,cat"
_EXCEL = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
_TSV = (".tsv", ".tab")
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class UserTable:
    """The cells of a table as text without spaces around them; what is missing is empty.

    Attributes:
        path: The file.
        frame: The rows that are not empty.
        places: Line or row of the file of each of them.
        notes: What is unusual about the form.
    """

    path: Path
    frame: pd.DataFrame
    places: Sequence[str]
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name of the file for messages."""
        return visible(self.path.name)

    def place(self, row: int) -> str:
        """Return where a row is, as in "labels.csv, line 3"."""
        return f"{self.title}, {self.places[row]}"


def read_user_table(path: Path) -> UserTable:
    """Read a table; its form follows from the name of the file.

    Raises:
        DtrapError: It is not there, not a table, too large, or a row has another number of cells than the header.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is a pipe or device" if path.exists() else "does not exist"
        raise DtrapError(f"table {path} {what}. Expected {_EXAMPLE}")
    ending = path.suffix.casefold()
    if ending in _EXCEL:
        raise DtrapError(f"table {path} is a spreadsheet; expected CSV, TSV or Parquet. Save it as CSV (UTF-8).")
    if not path.stat().st_size:
        raise DtrapError(f"table {path} is empty. Expected {_EXAMPLE}")
    table = _read_parquet(path) if ending in _PARQUET else _read_text_table(path, tab_first=ending in _TSV)
    twice = table.frame.columns[table.frame.columns.duplicated()]
    named = [name for name in twice if name]
    if named:
        raise DtrapError(f"table {path}: there are several columns '{visible(named[0])}'. Rename all but one.")
    if not len(table.frame):
        raise DtrapError(f"table {path} has no rows below its header. Expected {_EXAMPLE}")
    return table


def _read_text_table(path: Path, *, tab_first: bool) -> UserTable:
    """Return the rows of a CSV or TSV file; line numbers count line ends within quotes as well."""
    import pandas as pd  # takes half a second

    text, encoding = read_text(path)
    body = text.lstrip("\ufeff\r\n")
    start = text[: len(text) - len(body)].count("\n")
    notes = [f"it is in {encoding}"] if encoding != "UTF-8" else []
    given = re.match(r"sep=(.)\r?\n", body)  # what Excel writes and reads as the separator
    if given:
        body, start = body[given.end() :], start + 1
    header = body.partition("\n")[0]
    if len(header) > LONGEST:
        raise DtrapError(f"table {path}: its first line has {len(header):,} characters. Expected {_EXAMPLE}")
    marks = sorted(SEPARATORS, key=lambda mark: (-_unquoted(header).count(mark), mark != "\t"))
    separator = given[1] if given else "\t" if tab_first and "\t" in header else marks[0]
    if separator not in header:
        raise DtrapError(f"table {path} has one column, '{visible(header.strip())[:80]}'. Expected {_EXAMPLE}")
    try:
        frame = pd.read_csv(
            io.StringIO(body), sep=separator, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise _not_a_row(path, error, start) from error
    frame = frame.fillna("")
    breaks = frame.apply(lambda column: column.str.count("\n")).sum(axis=1)
    lines = start + 1 + pd.RangeIndex(len(frame)) + (breaks.cumsum() - breaks)
    frame = frame.apply(lambda column: column.str.strip())
    columns = frame.iloc[0].tolist()
    filled = (frame != "").any(axis=1)
    filled.iloc[0] = False
    places = [f"line {line}" for line in lines[filled]]
    if separator != "," and not (tab_first and separator == "\t"):
        notes.append(f"its columns are separated by {SEPARATORS.get(separator, repr(separator))}")
    return UserTable(path, _titled(frame[filled], columns), places, tuple(notes))


def _unquoted(header: str) -> str:
    return re.sub(r'"[^"]*"', "", header)


def _not_a_row(path: Path, error: Exception, start: int) -> DtrapError:
    """Return the error for a row that the parser refuses."""
    reason = first_line(error)
    found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", reason)
    if found:
        columns, line, cells = map(int, found.groups())
        return DtrapError(
            f"table {path}, line {start + line} has {cells} cells, and the header {columns}. Put a cell that contains "
            'the separator into quotation marks: "a, b.jpg",cat'
        )
    quote = re.search(r"EOF inside string starting at row (\d+)", reason)
    if quote:
        return DtrapError(f"table {path}, line {start + int(quote[1]) + 1}: a quotation mark is not closed. Close it.")
    return DtrapError(f"table {path} cannot be read: {reason}. Expected {_EXAMPLE}")


def _read_parquet(path: Path) -> UserTable:
    """Return the rows of a Parquet file; columns of lists, structures and bytes are left out."""
    import pandas as pd

    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DtrapError(
            f"table {path}: Parquet needs pyarrow. Install it: pip install 'dtrap[parquet]', or save the table as CSV."
        ) from error
    try:
        # Columns are chosen by the file's own types; the types that pandas or others note in the file are not used.
        file = parquet.ParquetFile(path)
        schema, size = file.schema_arrow, _unpacked(file.metadata)
        plain = [field.name for field in schema if not (pa.types.is_nested(field.type) or _is_bytes(pa, field.type))]
        if size > 16 * LARGEST:
            raise DtrapError(f"table {path} has {size // 2**20:,} MB unpacked; expected paths and labels only.")
        content = file.read(columns=plain) if plain else None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DtrapError(
            f"table {path} cannot be read as Parquet: {first_line(error).rstrip('.')}. Write it again."
        ) from error
    left_out = [field.name for field in schema if field.name not in plain]
    notes = (f"columns of pictures or lists are not read: {', '.join(map(visible, left_out))}",) if left_out else ()
    if content is None or not content.num_rows:
        return UserTable(path, pd.DataFrame(columns=plain, dtype=str), (), notes)
    columns = {number: _texts(content.column(number)) for number in range(len(plain))}
    frame = _titled(pd.DataFrame(columns), [name.strip() for name in plain])
    filled = (frame != "").any(axis=1)
    return UserTable(path, frame[filled].reset_index(drop=True), [f"row {n + 1}" for n in frame.index[filled]], notes)


def _unpacked(metadata: object) -> int:
    groups = range(metadata.num_row_groups)  # type: ignore[attr-defined]
    return sum(metadata.row_group(number).total_byte_size for number in groups)  # type: ignore[attr-defined]


def _is_bytes(pa: object, kind: object) -> bool:
    types = pa.types  # type: ignore[attr-defined]
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _texts(column: object) -> list[str]:
    values = column.to_pylist()  # type: ignore[attr-defined]
    return ["" if value is None or value != value else str(value).strip() for value in values]


def _titled(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows under their titles, numbered from 0."""
    titled = frame.reset_index(drop=True)
    titled.columns = list(columns)
    return titled
