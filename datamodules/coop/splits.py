"""Training, validation and test images of a set: CoOp's split files, and splits drawn by CoOp's rule."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ... import parsing
from ...errors import DtrapError
from ..index import SPLITS, ImageIndex, listing
from ..places import list_place, resolve, unwrapped
from ..text_files import read_bytes
from ..walk import list_images

SEED = 1


class Row(NamedTuple):
    """One image: its path under the image folder, with `/`, its label and its class name."""

    path: str
    label: int
    name: str


Split = dict[str, list[Row]]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, gzip-compressed if its name ends in `.gz`.

    Raises:
        DtrapError: It cannot be read.
    """
    try:
        return parsing.parse_json(read_bytes(path, "JSON"))
    except ValueError as error:
        raise DtrapError(f"{path} cannot be read as JSON: {error}. Download it again.") from error


def read_split(path: Path) -> Split:
    """Return the rows of a CoOp split file: `{"train": [[path, label, class name], ...], "val": ..., "test": ...}`.

    Raises:
        DtrapError: The file has another form, a path leads out of the image folder or appears twice, the labels are not
            0, 1, 2, ..., or a label has two class names or a class name two labels.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in SPLITS):
        found = listing(list(map(repr, content))) if isinstance(content, dict) else type(content).__name__
        raise DtrapError(f"{path}: expected the lists 'train', 'val' and 'test', found {found}. Use CoOp's file.")
    split: Split = {name: [] for name in SPLITS}
    places: dict[str, str] = {}
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    for name in SPLITS:
        for number, cells in enumerate(content[name], 1):
            place = f"'{name}' row {number}"
            row = _row(cells, f"{path}, {place}")
            fault = None
            if places.setdefault(row.path, place) != place:
                fault = f"'{row.path}' is also in {places[row.path]}. Remove one of them."
            elif (other := names.setdefault(row.label, row.name)) != row.name:
                fault = f"label {row.label} is '{row.name}' here and '{other}' in a row before. Correct the row."
            elif (first := labels.setdefault(row.name, row.label)) != row.label:
                fault = f"'{row.name}' has label {row.label} here and {first} in a row before. Correct the row."
            if fault is not None:
                raise DtrapError(f"{path}, {place}: {fault}")
            split[name].append(row)
    if not places:
        raise DtrapError(f"{path} has no rows. Download it again.")
    absent = [str(label) for label in range(len(names)) if label not in names]
    if absent:
        raise DtrapError(
            f"{path}: {len(names)} classes with labels up to {max(names)}, but none has label {listing(absent)}. "
            "Expected 0, 1, 2, ... without a gap; use CoOp's file."
        )
    return split


def _row(row: Any, place: str) -> Row:
    match row:
        case [str(path), int(label), str(name)] if path.strip() and name.strip() and label is not True and label >= 0:
            pass
        case _:
            raise DtrapError(f"{place}: expected [path, label, class name], found {json.dumps(row)}. Correct the row.")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise DtrapError(f"{place}: the path {path!r} leads out of the image folder. Correct the row.")
    return Row(str(parts), int(label), " ".join(name.replace("_", " ").split()))


def index_split(split: Split, images: Path) -> ImageIndex:
    """Return the index of the rows whose image exists, in their order; the others are its `missing`.

    Args:
        split: Rows; where labels have a gap, as for a class that a list of the release does not name, the next labels
            move up.
        images: Folder that the paths start from; every folder of images is listed once.
    """
    folders = _find_folders(split, images)
    rows = [(_path_of(row, folders), part, row) for part in SPLITS for row in split[part]]
    present = {path for folder in folders.values() if os.path.isdir(folder) for path in list_images(folder)}
    found = [(path, part, row.label) for path, part, row in rows if path in present]
    names = dict(sorted({row.label: row.name for _, _, row in rows}.items()))
    order = {label: number for number, label in enumerate(names)}
    return ImageIndex(
        paths=[path for path, _, _ in found],
        labels=[order[label] for _, _, label in found],
        class_names=list(names.values()),
        roots=(str(images),),
        missing=tuple(path for path, _, _ in rows if path not in present),
        splits=[part for _, part, _ in found],
    )


def row_places(split: Split, images: Path, title: str) -> dict[str, str]:
    """Return part, number and class of the row of each image, such as "split.json, 'train' row 7 (banded)"."""
    folders = _find_folders(split, images)
    return {
        _path_of(row, folders): f"{title}, '{part}' row {number} ({row.name})"
        for part in SPLITS
        for number, row in enumerate(split[part], 1)
    }


def _find_folders(split: Split, images: Path) -> dict[str, str]:
    """Return the place of each folder that the rows name: in another case or inside itself if it is not as named."""
    top = list_place(images)
    found: dict[str, str] = {}
    for folder in sorted({row.path.rpartition("/")[0] for rows in split.values() for row in rows}):
        named = os.path.join(images, *folder.split("/")).removesuffix(os.sep)
        there = resolve(top, folder) if folder else None
        found[folder] = named if there is None else str(unwrapped(there))
    return found


def _path_of(row: Row, folders: Mapping[str, str]) -> str:
    folder, _, name = row.path.rpartition("/")
    return os.path.join(folders[folder], name)


def draw_split(images: Mapping[str, Sequence[str]]) -> Split:
    """Draw half of each class's images for training, a fifth for validation and the rest for testing, as CoOp does.

    Args:
        images: Paths under the image folder of each class name; label i is the i-th class.
    """
    rng = np.random.default_rng(SEED)
    split: Split = {part: [] for part in SPLITS}
    for label, (name, paths) in enumerate(images.items()):
        ends = np.cumsum([round(0.5 * len(paths)), round(0.2 * len(paths))])
        for part, chosen in zip(SPLITS, np.split(rng.permutation(len(paths)), ends), strict=True):
            split[part] += [Row(paths[position], label, name) for position in np.sort(chosen)]
    return split


def draw_validation(rows: Sequence[Row], test: Sequence[Row]) -> Split:
    """Draw a fifth of each class's training rows for validation, as CoOp does; the test rows are published."""
    rng = np.random.default_rng(SEED)
    of_class: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        of_class[row.label].append(row)
    split: Split = {"train": [], "val": [], "test": list(test)}
    for label in sorted(of_class):
        held = set(rng.permutation(len(of_class[label]))[: round(0.2 * len(of_class[label]))].tolist())
        for position, row in enumerate(of_class[label]):
            split["val" if position in held else "train"].append(row)
    return split
