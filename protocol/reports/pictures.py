"""Pictures of a report: episodes, their worst errors, and maps of features; all read from files of a stranger."""

from __future__ import annotations

import base64
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files import open_file
from ..run_folder import Row
from ..studies.folder import STUDY_JSON
from .charts import feature_map
from .figures import Section
from .merging import Comparison, Entry, Task
from .own_images import are_own, place_of, sheets
from .runs import LONGEST_TEXT, Method, is_within

if TYPE_CHECKING:
    from .charts import Chart

WIDEST, WIDEST_SHEET, MOST_PIXELS = 900, 1300, 40_000_000
LARGEST_PICTURE, LARGEST_TENSORS = 32 << 20, 256 << 20
MOST_PICTURES, MOST_ERRORS, MOST_MAPS = 8, 6, 2
PICTURE_BYTES = 1_500_000  # of all pictures together, so that the page stays small
SIDE = 64


@dataclass(frozen=True)
class Picture:
    """A picture within the page.

    Attributes:
        source: Its `data:` address.
        alt: The same in words.
        caption: What it shows.
        width: Width in pixels.
        height: Height in pixels.
    """

    source: str
    alt: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True)
class Errors:
    """The test images that a method was most certain of and wrong.

    Attributes:
        title: Method and episode.
        pictures: The images.
    """

    title: str
    pictures: Sequence[Picture]


def feature_section(comparison: Comparison) -> Section:
    """Return maps of the image and text features of the first saved episodes."""
    section = Section("features", "Features before and after")
    labels, faults = comparison.labels(), []
    for task in comparison.tasks:
        for entry in task.entries:
            if len(section.charts) == MOST_MAPS:
                break
            for episode, path in _files(entry, "features", ".safetensors")[:1]:
                try:
                    section.charts.append(_map(path, place_of(task, labels[entry.key], episode)))
                except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
                    faults.append(f"{path} is left out: {str(error)[:LONGEST_TEXT]}")
    section.notes = faults
    if not section.charts:
        kept = "1 of dtrap fit keeps them" if are_own(comparison) else "2 of dtrap fit keeps those of two episodes"
        section.missing = f"No features are saved. --protocol.save_features {kept}."
    return section


def picture_section(comparison: Comparison) -> Section:
    """Return pictures of episodes, and the worst errors of the first saved predictions."""
    own = are_own(comparison)
    section = Section("episodes", "Test images" if own else "Episodes and worst errors")
    labels, rest = comparison.labels(), PICTURE_BYTES
    left_out = 0
    for path, read in _drawn(comparison, labels):
        if len(section.pictures) == MOST_PICTURES or rest <= 0:
            left_out += 1
            continue
        try:
            picture = read(path)
        except (OSError, ValueError) as error:
            section.notes.append(f"{path} is left out: {str(error)[:LONGEST_TEXT]}")
            continue
        section.pictures.append(picture)
        rest -= len(picture.source)
    errors = list(_errors(comparison.tasks, labels, section.notes))
    section.pictures += errors
    missing = []
    if not any(isinstance(found, Picture) for found in section.pictures):
        one = "There is no picture. --protocol.pictures 1 of dtrap fit draws one."
        missing.append(one if own else "No episode has a picture. --protocol.pictures 3 of dtrap fit draws three.")
    if not errors and not own:
        missing.append(
            "No predictions are saved. --protocol.save_predictions true of dtrap fit keeps the worst errors."
        )
    if left_out:
        section.notes.append(f"{left_out} more pictures are in the run folders.")
    section.missing = " ".join(missing)
    return section


def _drawn(comparison: Comparison, labels: Mapping[Any, str]) -> Iterator[tuple[Path, Callable[[Path], Picture]]]:
    """Yield each picture of the run folders with the function that reads it; sheets of test images come first."""
    entries = [(task, entry) for task in comparison.tasks for entry in task.entries]
    for task, entry in entries:
        title = f"{task.title}, {labels[entry.key]}: wrong and least certain test images"
        alt = f"{title}. The file test_images.csv next to the picture has the same in words."
        for path in sheets(entry):
            yield path, partial(_read_png, alt=alt, caption=title, widest=WIDEST_SHEET)
    for task, entry in entries:
        for episode, path in _files(entry, "pictures", ".png"):
            title = place_of(task, labels[entry.key], episode)
            yield path, partial(_picture, title=title, entry=entry, episode=episode)


def _files(entry: Entry, folder: str, ending: str) -> list[tuple[int, Path]]:
    """Return the files of an entry's episodes that lie within their run folder, by episode number of the run."""
    found: dict[str, tuple[int, Path]] = {}
    for source in entry.sources:
        for row in source.rows.values():
            run, name = _origin(source, row)
            path = run / folder / f"episode_{row['episode']:04d}_{name}{ending}"
            if path.is_file() and is_within(path, run):
                found.setdefault(os.path.realpath(path), (row["episode"], path))
    return sorted(found.values())


def _origin(source: Method, row: Row) -> tuple[Path, str]:
    """Return the run folder and the method that have the files of a row: a copied row's are with the original."""
    run, name, place = source.run.folder, row.get("same_as") or source.name, row.get("copied_from")
    if not isinstance(name, str) or "/" in name or not isinstance(place, str | None):
        return run, source.name
    if place is None:
        return run, name
    # The place is relative to the study's folder, in which cells lie one or two levels deep.
    for study in list(run.absolute().parents)[:2]:
        if (study / STUDY_JSON).is_file() and is_within(study / place, study):
            return study / place, name
    return run, source.name


def _picture(path: Path, title: str, entry: Entry, episode: int) -> Picture:
    """Return the picture of an episode."""
    row = next((row for row in entry.rows.values() if row["episode"] == episode), {})
    accuracy = "" if row.get("accuracy") is None else f" The accuracy is {row['accuracy']:.1f} percent."
    alt = f"Support images and queries of {title}, each query with its predicted class.{accuracy}"
    return _read_png(path, alt, title, WIDEST)


def _read_png(path: Path, alt: str, caption: str, widest: int) -> Picture:
    """Return a PNG file as a smaller JPEG picture that Pillow has written anew."""
    from PIL import Image

    with open_file(path) as file:
        content = file.read(LARGEST_PICTURE + 1)
    if len(content) > LARGEST_PICTURE:
        raise ValueError(f"larger than {LARGEST_PICTURE >> 20} MB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(io.BytesIO(content), formats=["PNG"])
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"more than {MOST_PIXELS:,} pixels")
            image = opened.convert("RGB")
        except (SyntaxError, EOFError, Image.DecompressionBombError, MemoryError) as error:
            raise ValueError(f"not a PNG picture ({error})") from error
    if image.width > widest:
        image = image.resize((widest, max(1, round(image.height * widest / image.width))), Image.Resampling.LANCZOS)
    return _encoded(image, alt, caption, quality=72)


def _encoded(image: Any, alt: str, caption: str, quality: int) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(source, alt, caption, image.width, image.height)


def _errors(tasks: Sequence[Task], labels: Mapping[Any, str], notes: list[str]) -> Iterator[Errors]:
    shown = 0
    for task in tasks:
        for entry in task.entries:
            for episode, path in _files(entry, "predictions", ".safetensors"):
                if shown == MOST_ERRORS:
                    return
                try:
                    pictures = list(_thumbnails(path))
                except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
                    notes.append(f"{path} is left out: {str(error)[:LONGEST_TEXT]}")
                    continue
                if pictures:
                    shown += 1
                    yield Errors(f"{place_of(task, labels[entry.key], episode)}: worst errors", pictures)


def _thumbnails(path: Path) -> Iterator[Picture]:
    from PIL import Image

    tensors, metadata = _tensors(path)
    scores, labels = tensors["scores"].astype(float), tensors["labels"].astype(int).ravel()
    thumbnails, rows = tensors["thumbnails"], tensors["thumbnail_rows"].astype(int).ravel()
    names = _texts(metadata, "class_names")
    images = _texts(metadata, "images") if "images" in metadata else []
    if thumbnails.ndim != 4 or thumbnails.shape[1:] != (SIDE, SIDE, 3) or thumbnails.dtype != np.uint8:
        raise ValueError(f"its thumbnails are not [N, {SIDE}, {SIDE}, 3] of 8 bits")
    if scores.ndim != 2 or scores.shape != (len(labels), len(names)) or len(rows) != len(thumbnails):
        raise ValueError("its scores, labels and class names do not fit together")
    if len(rows) and not (rows.min() >= 0 and rows.max() < len(labels)):
        raise ValueError("a thumbnail belongs to no score")
    for pixels, row in zip(thumbnails, rows, strict=True):
        shown = scores[row] - scores[row].max()
        chances = np.exp(shown) / np.exp(shown).sum()
        guess = int(chances.argmax())
        true, guessed = names[labels[row]], names[guess]
        caption = f"{true}, taken for {guessed} ({100 * chances[guess]:.0f} %)"
        named = f" File {images[row]}." if row < len(images) else ""
        yield _encoded(
            Image.fromarray(pixels), f"Test image of class {true}, classified as {guessed}.{named}", caption, 85
        )


def _map(path: Path, title: str) -> Chart:
    tensors, metadata = _tensors(path)
    return feature_map(
        tensors["before.image"].astype(float),
        tensors["after.image"].astype(float),
        tensors["is_query"].astype(bool),
        tensors["labels"].astype(int),
        tensors["before.text"].astype(float),
        tensors["after.text"].astype(float),
        _texts(metadata, "class_names"),
        title=title,
    )


def _tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return arrays and metadata of a safetensors file, which holds no code."""
    from safetensors import SafetensorError, safe_open

    if path.stat().st_size > LARGEST_TENSORS:
        raise ValueError(f"larger than {LARGEST_TENSORS >> 20} MB")
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file ({error})") from error


def _texts(metadata: Mapping[str, str], key: str) -> list[str]:
    found = json.loads(metadata[key])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"its {key} are no list of texts")
    return [text[:LONGEST_TEXT] for text in found]
