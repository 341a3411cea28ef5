"""Read tables, lists and JSON of other people: regular files of a bounded size, as the text that they are."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

from ..errors import DtrapError
from ..files import read_at_most

LARGEST = 64 * 2**20  # bytes; the largest official table has 8 MB, the largest split file 12 MB
LONGEST = 2**20  # characters of a line
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
_AGAIN = "Download it again."
# UTF-32 comes before UTF-16, whose mark is the beginning of its own.
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\xef\xbb\xbf": "UTF-8-SIG",
}
# First bytes of files that are taken for a table because of their name.
_OTHER_KINDS = {
    b"PK\x03\x04": ("an Excel or zip file", "Save it as CSV (UTF-8), or unpack it."),
    b"\xd0\xcf\x11\xe0": ("an old Excel file", "Save it as CSV (UTF-8)."),
    b"\x1f\x8b": ("gzip-compressed", "Unpack it with gunzip."),
    b"PAR1": ("a Parquet file", "Save it as CSV."),
    b"%PDF": ("a PDF file", _AGAIN),
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "Get the file with git lfs pull."),
    b"<!doctype": ("a web page", _AGAIN),
    b"<html": ("a web page", _AGAIN),
}


def read_bytes(path: Path, kind: str = "a table") -> bytes:
    """Return the content of a regular file, unpacked if its name ends in `.gz`.

    Args:
        path: The file.
        kind: What is expected, such as "JSON".

    Raises:
        DtrapError: It cannot be read, is a pipe, a device or a folder, is empty, or is larger than `LARGEST`.
    """
    try:
        content = read_at_most(path, LARGEST + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DtrapError(f"{path} cannot be read as {kind}: {error}. {_AGAIN}") from error
    if len(content) > LARGEST:
        raise DtrapError(f"{path} has more than {LARGEST // 2**20} MB; expected {kind}. Use the official file.")
    if not content.strip():
        raise DtrapError(f"{path} is empty. {_AGAIN}")
    return content


def read_text(path: Path, kind: str = "a table") -> tuple[str, str]:
    """Return the text of a file and its encoding: UTF-8, or what a byte order mark says.

    Raises:
        DtrapError: It cannot be read, is a file of another kind, has zero bytes, or is in another encoding.
    """
    content = read_bytes(path, kind)
    start = content[:64].lstrip().lower()
    for first, (what, remedy) in _OTHER_KINDS.items():
        if start.startswith(first.lower()):
            raise DtrapError(f"{path} is {what}; expected {kind}. {remedy}")
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "UTF-8")
    if encoding == "UTF-8" and b"\0" in content:
        raise DtrapError(f"{path}: {_with_zero_bytes(content)}")
    try:
        return content.decode(encoding), encoding.removesuffix("-SIG")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        if encoding != "UTF-8":
            raise DtrapError(f"{path}: damaged {encoding} ({error.reason}). {_AGAIN}") from error
        raise DtrapError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; the file may be in Latin-1 or "
            f"Windows-1252. Convert it: {_convert('WINDOWS-1252', path)}"
        ) from error


def _with_zero_bytes(content: bytes) -> str:
    """Return what is wrong with a file that has zero bytes and no byte order mark, and the remedy."""
    start = content[:1000]
    for encoding, zeros, letters in (("UTF-16LE", start[1::2], start[::2]), ("UTF-16BE", start[::2], start[1::2])):
        if zeros.count(0) > 0.9 * len(zeros) and not letters.count(0):
            return f"it is {encoding} without a byte order mark; expected UTF-8. Use iconv -f {encoding}."
    line = content.count(b"\n", 0, content.index(b"\0")) + 1
    return f"line {line} has a zero byte, so it is damaged or no text. {_AGAIN}"


def _convert(encoding: str, path: Path) -> str:
    return f"iconv -f {encoding} -t UTF-8 '{path}' > converted, then replace the file with it."


def read_lines(path: Path, kind: str = "a table") -> tuple[list[str], str]:
    """Return the lines of a file, with their ends, and its encoding.

    Raises:
        DtrapError: It is not a text file (see `read_text`), or a line is longer than `LONGEST`.
    """
    text, encoding = read_text(path, kind)
    lines = list(io.StringIO(text, newline=""))  # str.splitlines would also split at form feeds and U+2028
    long = next((number for number, line in enumerate(lines, 1) if len(line) > LONGEST), None)
    if long is not None:
        raise DtrapError(f"{path}, line {long} has {len(lines[long - 1]):,} characters; expected {kind}. {_AGAIN}")
    return lines, encoding


def read_csv(path: Path, expected: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]], list[str]]:
    """Return the columns, line and cells of each row that is not empty, and what is unusual about the form.

    The separator is the one of `SEPARATORS` with which the expected columns are found, else a comma.

    Raises:
        DtrapError: It is not a text file (see `read_text`), or a quotation mark is not closed.
    """
    content, encoding = read_lines(path)
    header = next((line for line in content if line.strip()), "").strip("\r\n")
    found = {mark: {cell.strip(' "') for cell in header.split(mark)} for mark in SEPARATORS}
    separator = next((mark for mark, columns in found.items() if columns.issuperset(expected)), ",")
    if separator == "," and len(found[","]) == 1:
        other = max(SEPARATORS, key=header.count)
        if header.count(other):
            raise DtrapError(
                f"{path}: the columns are separated by {SEPARATORS[other]}, and "
                f"{missing_from(found[other], expected)}. Expected {', '.join(expected)}. Use the official file."
            )
    lines = csv.reader(content, delimiter=separator, strict=True)
    try:
        rows = [(lines.line_num, row) for row in lines if any(row)]
    except csv.Error as error:
        raise DtrapError(
            f"{path}, line {lines.line_num}: not a row of a table ({error}). Correct the line or download it again."
        ) from error
    unusual = [f"it is in {encoding}"] if encoding != "UTF-8" else []
    unusual += [f"its columns are separated by {SEPARATORS[separator]}"] if separator != "," else []
    columns = rows[0][1] if rows else []
    return [name.strip() for name in columns], rows[1:], unusual


def missing_from(found: set[str], expected: Sequence[str]) -> str:
    """Return which expected column is not among those found."""
    return f"column '{next((name for name in expected if name not in found), '')}' is missing"
