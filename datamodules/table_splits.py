"""Splits in the cells of a user's table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import DtrapError, visible
from .index import SPLITS
from .split_folders import NAMES
from .table_file import UserTable

_SPLITS = {
    **{name: split for split, names in NAMES.items() for name in names},
    **{"trn": "train", "tr": "train", "tst": "test", "te": "test", "query": "test", "support": "train"},
}


def split_of(cell: str) -> str:
    """Return the split that a cell says, in any case; an empty text if it says none."""
    return _SPLITS.get(re.sub(r"[\s-]+", "_", cell.casefold()), "")


def read_splits(table: UserTable, column: str | None) -> Sequence[str] | None:
    """Return the split of each row ("" where the cell is empty); None without splits.

    Raises:
        DtrapError: A cell says none of the splits.
    """
    if column is None:
        return None
    cells = table.frame[column].tolist()
    splits = [split_of(cell) for cell in cells]
    wrong = next((row for row, cell in enumerate(cells) if cell and not splits[row]), None)
    if wrong is not None:
        raise DtrapError(
            f"table {table.path}, {table.places[wrong]}: split '{visible(cells[wrong])}' in column '{column}'; "
            f"expected {', '.join(SPLITS)}. Correct it, or read the table without splits: --data.split_column ''"
        )
    return splits if any(splits) else None
