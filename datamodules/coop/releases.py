"""Read the lists and annotations of the original releases."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from ...errors import DtrapError
from ..text_files import read_bytes, read_lines


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield place (for an error) and text of each line that is not empty.

    Raises:
        DtrapError: The file is not text or has no lines.
    """
    lines, _ = read_lines(path, "a text file")
    filled = [(f"{path}, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise DtrapError(f"{path} has no lines. Download it again.")
    yield from filled


def read_mat(path: Path, key: str) -> Any:
    """Return one variable of a MATLAB file; structs are dictionaries.

    Raises:
        DtrapError: The file cannot be read or has no such variable.
    """
    from scipy.io import loadmat

    content: Any = BytesIO(read_bytes(path, "a MATLAB file"))
    try:
        variables = loadmat(content, simplify_cells=True)
    except Exception as error:  # scipy raises MatReadError, ValueError, TypeError, zlib.error, ...
        raise DtrapError(f"{path} cannot be read as a MATLAB file: {error}. Download it again.") from error
    if key not in variables:
        found = ", ".join(name for name in variables if not name.startswith("__"))
        raise DtrapError(f"{path}: variable '{key}' is missing; found {found}. Use the official file.")
    return variables[key]
