"""Reading the tables of labels, with errors that name file, line and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DtrapError, nearest
from .reads import note_file


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """The table of a csv file.

    Args:
        path: The file.
        **options: For `pandas.read_csv`.

    Raises:
        DtrapError: It is no csv file or has no rows.
    """
    note_file(path)
    try:
        frame = pd.read_csv(path, index_col=False, **options)
    except (ValueError, OSError) as error:  # pandas' parser errors and UnicodeDecodeError are ValueErrors
        raise DtrapError(f"{path} cannot be read as a csv file: {error}. Download it again.") from error
    if frame.empty:
        raise DtrapError(f"{path} has no rows. Download it again.")
    return frame


def check_columns(path: Path, found: list[str], expected: list[str], others_allowed: bool = False) -> None:
    """Raise a DtrapError unless a table has the expected columns, and no others unless these are allowed."""
    for name in expected:
        if name not in found:
            others = [column for column in found if column not in expected]
            raise DtrapError(
                f"{path}: column '{name}' is missing.{nearest(name, others)} Expected {', '.join(expected)}; "
                f"found {', '.join(found)}. Use the official file."
            )
    for name in found:
        if name not in expected and not others_allowed:
            raise DtrapError(
                f"{path}: unknown column '{name}'. Expected {', '.join(expected)}. Remove it or use the official file."
            )


def check_unique(path: Path, names: pd.Series) -> None:
    """Raise a DtrapError where an image has no name or is named twice; the message gives the line."""
    empty = names.isna()
    if empty.any():
        line = int(empty.to_numpy().argmax()) + 2
        raise DtrapError(f"{path}, line {line}: no image name. Correct or remove the row.")
    twice = names.duplicated()
    if twice.any():
        name = names[twice].iloc[0]
        lines = [str(i + 2) for i, other in enumerate(names) if other == name]
        raise DtrapError(
            f"{path}, lines {', '.join(lines)}: image '{name}' is there more than once "
            f"({int(twice.sum())} such row(s)). Remove all but one."
        )
