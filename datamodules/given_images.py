"""What somebody gives to be classified: files, folders, patterns, tables and pictures in memory, in one list."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DtrapError
from .index import listing, no_folder
from .text_files import SEPARATORS, read_lines
from .walk import IMAGE_ENDINGS, Found, left_out_line, walk

PATH_COLUMNS = ("path", "image_path", "file", "filename", "image")
TABLES = (".csv", ".tsv", ".parquet")
_REMEDY = "Give images, folders, patterns in quotation marks or tables: --images PATH [PATH ...]"


@dataclass(frozen=True)
class GivenImage:
    """An image to classify.

    Attributes:
        name: Its path, or "image 1" and so on of a picture in memory.
        source: What is opened: the path, or the picture.
        folder: The folder that was given and that it was found in; "" where the image itself was given.
        label: What a table says that it shows; "" where nothing does.
    """

    name: str
    source: str | Image.Image
    folder: str = ""
    label: str = ""


@dataclass
class GivenImages:
    """The images of everything that was given, each once, in the order in which they were given.

    Attributes:
        images: The images.
        left_out: Paths of files that are not images by reason, as in `walk.Found`.
        faults: (path, reason) of what cannot be read.
        notes: What a user should know, one line each.
    """

    images: list[GivenImage] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def left_out_line(self) -> str:
        """Line such as "20 files left out: 12 .dcm, 8 .svg"; may be empty."""
        return left_out_line(self.left_out)

    def add(self, found: Found, folder: str = "") -> None:
        """Append what a folder holds, or files that were given."""
        self.images += [GivenImage(path, path, folder) for path in found.images]
        for reason, paths in found.left_out.items():
            self.left_out.setdefault(reason, []).extend(paths)
        self.faults += found.faults


def find_images(given: Any) -> GivenImages:
    """Return the images of a file, a folder, a pattern, a table or a picture, or of several of these.

    A folder is searched with its sub-folders, see `walk`. A pattern such as "photos/*.jpg" is used where no file has
    that name; `**` stands for any folders. A table (.csv, .tsv, .parquet) has a column `path`, relative to the table or
    to the current folder, and may have a column `label`. A picture is a PIL image or an array [H, W] or [H, W, 3 or 4]
    of bytes.

    Args:
        given: One of these or a sequence of them.

    Raises:
        DtrapError: Something does not exist or is none of these, or there is no image at all.
    """
    several = list(given) if isinstance(given, Iterable) and not _is_single(given) else [given]
    found = GivenImages()
    for number, item in enumerate(several, start=1):
        if isinstance(item, Image.Image | np.ndarray):
            found.images.append(GivenImage(f"image {number}", _picture(item, number)))
        elif isinstance(item, str | os.PathLike):
            _add_path(os.path.expanduser(os.fspath(item)), found)
        else:
            raise DtrapError(
                f"image {number} is a {type(item).__name__}; expected a path, a PIL image, or a NumPy array of bytes "
                "[height, width, 3]."
            )
    _drop_repeats(found)
    if not found.images:
        because = found.left_out_line or "; ".join(f"{path}: {reason}" for path, reason in found.faults[:3])
        places = listing([str(item) for item in several], 3) or "nothing"
        raise DtrapError(f"No image files in {places}{because and f' ({because})'}. {_REMEDY}.")
    return found


def _is_single(given: Any) -> bool:
    return isinstance(given, str | os.PathLike | Image.Image | np.ndarray)


def _add_path(path: str, found: GivenImages) -> None:
    """Append the images of a path or pattern."""
    if os.path.isdir(path):
        found.add(walk(path), path)
    elif os.path.lexists(path):
        if os.path.splitext(path)[1].lower() in TABLES:
            _add_table(path, found)
        else:
            found.add(Found([path]))  # whatever its ending: it was named
    elif glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise DtrapError(f"No file or folder matches {path}. {_REMEDY}.")
        _add_matches(matches, found)
    else:
        raise DtrapError(f"{path} {no_folder(Path(path))}. {_REMEDY}.")


def _add_matches(matches: Sequence[str], found: GivenImages) -> None:
    """Append what a pattern has found: folders with all in them, and files with the ending of an image."""
    for match in matches:
        if os.path.isdir(match):
            found.add(walk(match), match)
        elif os.path.splitext(match)[1].lower() in IMAGE_ENDINGS:
            found.add(Found([match]))
        else:
            ending = os.path.splitext(match)[1].lower() or "without an ending"
            found.left_out.setdefault(ending, []).append(match)


def _add_table(path: str, found: GivenImages) -> None:
    """Append the images of a table."""
    columns, rows = _parquet(path) if path.lower().endswith(".parquet") else _text_table(path)
    named = {name.strip().casefold(): place for place, name in reversed(list(enumerate(columns)))}
    column = next((named[name] for name in PATH_COLUMNS if name in named), None)
    if column is None:
        raise DtrapError(
            f"{path} has the columns {listing(columns) or 'none'}; expected a column 'path' with the images (or "
            f"{', '.join(PATH_COLUMNS[1:])}). Rename that column."
        )
    labels = named.get("label")
    if labels is not None and "runner_up" in named:
        found.notes.append(f"{path} is a table of predictions, so its column 'label' is not what the images show")
        labels = None
    folder = os.path.dirname(path)
    for number, row in rows:
        name = row[column].strip() if column < len(row) else ""
        if not name:
            found.faults.append((f"{path}, line {number}", "it has no path"))
            continue
        place = os.path.join(folder, name)  # `name` itself if it is absolute
        place = name if not os.path.lexists(place) and os.path.lexists(name) else place
        if os.path.isdir(place):
            found.faults.append((place, f"{path}, line {number} names a folder, not an image"))
            continue
        label = row[labels].strip() if labels is not None and labels < len(row) else ""
        found.images.append(GivenImage(place, place, label=label))


def _text_table(path: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return the columns of a CSV or TSV file, and line and cells of its rows; the separator may be any usual one."""
    lines, _ = read_lines(Path(path))
    start = next((place for place, line in enumerate(lines) if line.strip()), 0)
    headers = {mark: next(csv.reader([lines[start]], delimiter=mark), []) for mark in SEPARATORS}
    separator = next(
        (mark for mark, cells in headers.items() if {c.strip().casefold() for c in cells} & {*PATH_COLUMNS}),
        max(headers, key=lambda mark: len(headers[mark])),
    )
    reader = csv.reader(lines[start + 1 :], delimiter=separator, strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                if any(row):
                    yield start + 1 + reader.line_num, row
        except csv.Error as error:
            raise DtrapError(
                f"{path}, line {start + 1 + reader.line_num}: not a row of a table ({error}). Correct the line."
            ) from error

    return headers[separator], rows()


def _parquet(path: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return the columns of a Parquet file, and number and cells of its rows."""
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise DtrapError(f"{path}: Parquet needs pyarrow. Use pip install 'dtrap[parquet]', or a CSV file.") from error
    except Exception as error:  # pyarrow raises its own errors, OSError and ValueError
        raise DtrapError(f"{path} cannot be read as Parquet: {error}. Write it again, or use a CSV file.") from error
    cells = (["" if pd.isna(value) else str(value) for value in row] for row in frame.itertuples(index=False))
    return list(map(str, frame.columns)), enumerate(cells, start=1)


def _picture(item: Image.Image | np.ndarray, number: int) -> Image.Image:
    """Return a picture in memory as a PIL image."""
    if isinstance(item, Image.Image):
        return item
    channels = item.ndim == 2 or (item.ndim == 3 and item.shape[2] in (3, 4))
    if item.dtype != np.uint8 or not channels or 0 in item.shape:
        raise DtrapError(
            f"image {number} is an array {list(item.shape)} of {item.dtype}; expected bytes (uint8) of [height, width] "
            "or [height, width, 3]. Convert it, such as (255 * array).round().astype('uint8')."
        )
    return Image.fromarray(np.ascontiguousarray(item))


def _drop_repeats(found: GivenImages) -> None:
    """Keep each file once and say how many were given again."""
    first: dict[Any, GivenImage] = {}
    labels: dict[Any, str] = {}
    for image in found.images:
        key = os.path.abspath(image.source) if isinstance(image.source, str) else id(image)
        known = first.setdefault(key, image)
        if image.label and labels.setdefault(key, image.label) != image.label:
            raise DtrapError(f"{image.name} has the labels '{labels[key]}' and '{image.label}'. Correct the table.")
        if image.label and not known.label:
            first[key] = GivenImage(known.name, known.source, known.folder, image.label)
    repeats = len(found.images) - len(first)
    found.images = list(first.values())
    if repeats:
        given = "1 image was given" if repeats == 1 else f"{repeats:,} images were given"
        found.notes.append(f"{given} more than once and {'is' if repeats == 1 else 'are'} classified once")
