"""A user's own images whose classes are in a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..errors import DtrapError, nearest, visible
from ..files import printable
from ..keywords import Unpack
from .copied_images import without_copies
from .few_shot import AnyShotOptions
from .folder import MOST_COMPARED, FolderDataModule
from .groups import UnusedGroups
from .index import SPLITS, ImageIndex, listing, no_folder, normal
from .table_columns import CLASS_NAME_COLUMNS, Columns, find_columns, number_of
from .table_file import UserTable, read_user_table
from .table_images import CASE, ELSEWHERE, TableImages
from .table_labels import class_names_of, label_of
from .table_splits import split_column, split_of
