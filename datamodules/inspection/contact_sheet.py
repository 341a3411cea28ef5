"""`dtrap data show`: a picture of some images of each class and of the five views of one image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from ...drawing import GREY, HEAD, MARGIN, draw_frame, draw_pixels, draw_text, fitted, new_page, save_png
from ...errors import DtrapError
from .. import FewShotDataModule, Preprocessing
from ..catalog import find_set
from ..folder import FolderDataModule
from ..images import ImageError
from ..index import SPLITS
from ..views import draw_views

IMAGES_PER_CLASS, CLASSES_PER_PART, MAX_PARTS_PER_ROW = 4, 40, 5
VIEW_NAMES = ("plain", "rotation + jitter + flip", "rotation", "jitter", "flip")
CELL, VIEW_CELL, SPACE, NAME_HEIGHT, BETWEEN = 0.8, 1.5, 0.06, 0.36, 0.35  # inches
BLOCK_WIDTH, BLOCK_HEIGHT = IMAGES_PER_CLASS * (CELL + SPACE), NAME_HEIGHT + CELL + 0.14
PART_HEAD = 0.35
PIXELS = 224


@dataclass(frozen=True)
class ClassImages:
    """One class on the sheet.

    Attributes:
        name: The class name, as in a prompt.
        count: Number of its images.
        images: Some of them; None for one that cannot be read.
        splits: Numbers of images in the splits of a user's own images, such as "10 train, 5 test".
    """

    name: str
    count: int
    images: Sequence[Image.Image | None]
    splits: str = ""


@dataclass(frozen=True)
class Sheet:
    """Content of a contact sheet.

    Attributes:
        title: First line.
        notes: Second line.
        classes: The classes.
        views: The fixed views of one image, the plain view first.
        views_title: Heading of the views, which names the image.
    """

    title: str
    notes: str
    classes: Sequence[ClassImages]
    views: Sequence[Image.Image]
    views_title: str


def show(name: str, root: Path, output: Path, seed: int, console: Console) -> int:
    """Write the contact sheet of a set of the catalog.

    Args:
        name: Name of the set.
        root: Folder of the set, or its parent.
        output: The PNG file.
        seed: Seed of the choice of images and of the views.
        console: Where the path of the file is printed.

    Raises:
        DtrapError: The name is unknown, the set is not under the root or has no image, or the file cannot be written.
    """
    check_png(output)
    return _write(find_set(name)(root, bad_images="skip", small_classes="skip", seed=seed), output, console)


def show_own(data: FolderDataModule, output: Path, console: Console) -> int:
    """Write the contact sheet of a user's own images.

    Args:
        data: The images; its seed chooses those that are shown, and the views.
        output: The PNG file.
        console: Where the path of the file is printed.

    Raises:
        DtrapError: There is no image that can be read, or the file cannot be written.
    """
    check_png(output)
    data.compares_files = False
    return _write(data, output, console)


def check_png(output: Path) -> None:
    """Raise a DtrapError unless the file is called like a PNG picture."""
    if output.suffix.lower() != ".png":
        raise DtrapError(f"--output {output}: expected a name that ends in .png.")


def _write(data: FewShotDataModule, output: Path, console: Console) -> int:
    """Draw the sheet and print where it is."""
    sheet = make_sheet(data, data.seed)
    save_png(output, sheet_figure(sheet), "or name another file with --output.")
    console.print(f"{sheet.title}: {output}", soft_wrap=True, markup=False)
    return 0


def make_sheet(data: FewShotDataModule, seed: int) -> Sheet:
    """Draw up to 4 images of each class, and the views of one image.

    Raises:
        DtrapError: The set is not under its root or has no image that can be read.
    """
    data.index = data.scan()  # without the warning about missing images, which are in the notes
    rng = np.random.default_rng(seed)
    classes, readable = [], []
    for name, positions in zip(data.index.class_names, data.positions, strict=True):
        chosen = rng.choice(positions, size=min(IMAGES_PER_CLASS, len(positions)), replace=False)
        images = [_load(data, int(position)) for position in chosen]
        readable += [int(number) for number, image in zip(chosen, images, strict=True) if image is not None]
        classes.append(ClassImages(_readable(name), len(positions), images, _splits(data, positions)))
    if not readable:
        raise DtrapError(f"{data}: no image can be read. Run dtrap data check {data.root}.")
    support = int(rng.choice(readable))
    name = _readable(data.index.class_names[data.index.labels[support]])
    return Sheet(
        title=f"{data.title} · {len(classes):,} classes · {len(data.index.paths):,} images",
        notes=_notes(data, seed),
        classes=classes,
        views=draw_views(data.load_image(support), Preprocessing(PIXELS), len(VIEW_NAMES), rng),
        views_title=f"The five views of a support image: {name}, {data.path_of(support).name}",
    )


def _notes(data: FewShotDataModule, seed: int) -> str:
    parts = [f"up to {IMAGES_PER_CLASS} images of each class, drawn with seed {seed}", *data.index.notes]
    if data.index.missing:
        count = len(data.index.missing)
        parts.append(f"{count:,} image{'s' * (count > 1)} named but missing")
    return " · ".join(parts)


def _load(data: FewShotDataModule, position: int) -> Image.Image | None:
    try:
        image = data.load_image(position)
    except ImageError:
        return None
    image.thumbnail((PIXELS, PIXELS))
    return image


def _readable(name: str) -> str:
    return " ".join(name.replace("_", " ").split()) or name


def sheet_figure(sheet: Sheet) -> Figure:
    """Return the picture as a matplotlib figure, without pyplot's global state.

    Classes are arranged in parts of at most 40, each up to four classes wide; many parts are arranged in rows.
    """
    parts = [sheet.classes[i : i + CLASSES_PER_PART] for i in range(0, len(sheet.classes), CLASSES_PER_PART)]
    # Classes in a row of a part, for pages that are about as high as wide.
    columns = next((columns for columns, most in ((1, 3), (2, 12), (3, 24)) if len(parts[0]) <= most), 4)
    head = PART_HEAD if len(parts) > 1 else 0.0
    across = min(math.ceil(math.sqrt(len(parts))), MAX_PARTS_PER_ROW)
    part_width = columns * (BLOCK_WIDTH + BETWEEN)
    # No part of a row has more classes than the first one.
    heights = [head + math.ceil(len(part) / columns) * BLOCK_HEIGHT for part in parts[::across]]
    top = HEAD - 0.1 + VIEW_CELL + 0.65
    width = max(across * part_width - BETWEEN, len(VIEW_NAMES) * (VIEW_CELL + 2 * SPACE)) + 2 * MARGIN
    height = top + sum(heights) + MARGIN
    title = fitted(sheet.title, width - 2 * MARGIN, 12, "bold")
    figure, axes = new_page(width, height, title, fitted(sheet.notes, width - 2 * MARGIN, 8))
    _draw_views(axes, sheet, HEAD - 0.1, width)
    for number, part in enumerate(parts):
        row, column = divmod(number, across)
        left, above = MARGIN + column * part_width, top + sum(heights[:row])
        if head:
            first = number * CLASSES_PER_PART + 1
            heading = f"classes {first:,} to {first + len(part) - 1:,} of {len(sheet.classes):,}"
            draw_text(axes, left, above + 0.04, heading, size=9, weight="bold", color=GREY)
        _draw_part(axes, part, left, above + head, columns)
    return figure


def _splits(data: FewShotDataModule, positions: Iterable[int]) -> str:
    """Return the numbers of a class's images in each split of a user's own images."""
    if not data.own_images or data.index.splits is None:
        return ""
    counts = Counter(data.index.splits[position] for position in positions)
    return ", ".join(f"{counts[split]:,} {split}" for split in SPLITS if split in counts)


def _draw_views(axes: Axes, sheet: Sheet, top: float, width: float) -> None:
    draw_text(axes, MARGIN, top, fitted(sheet.views_title, width - 2 * MARGIN, 9, "bold"), size=9, weight="bold")
    plain = np.asarray(sheet.views[0])
    for number, (name, view) in enumerate(zip(VIEW_NAMES, sheet.views, strict=True)):
        x = MARGIN + number * (VIEW_CELL + 2 * SPACE)
        _draw_image(axes, view, x, top + 0.22, VIEW_CELL)
        unchanged = name == "flip" and np.array_equal(np.asarray(view), plain)
        caption = f"{name} (not flipped)" if unchanged else name
        _on_line(axes, x, top + 0.38 + VIEW_CELL, fitted(caption, VIEW_CELL, 8), size=8)


def _draw_part(axes: Axes, part: Sequence[ClassImages], left: float, top: float, columns: int) -> None:
    for number, shown in enumerate(part):
        row, column = divmod(number, columns)
        x, y = left + column * (BLOCK_WIDTH + BETWEEN), top + row * BLOCK_HEIGHT
        _on_line(axes, x, y + 0.12, fitted(shown.name, BLOCK_WIDTH, 8, "bold"), size=8, weight="bold")
        count = f"{shown.count:,} image{'' if shown.count == 1 else 's'}" if shown.count else "no image"
        count += f": {shown.splits}" if shown.splits else ""
        _on_line(axes, x, y + 0.27, fitted(count, BLOCK_WIDTH, 7), size=7, color=GREY)
        for place, image in enumerate(shown.images):
            _draw_image(axes, image, x + place * (CELL + SPACE), y + NAME_HEIGHT, CELL)


def _on_line(axes: Axes, x: float, y: float, text: str, **style: object) -> None:
    """Draw text on a baseline, so that texts with and without tall letters are aligned."""
    draw_text(axes, x, y, text, verticalalignment="baseline", **style)


def _draw_image(axes: Axes, image: Image.Image | None, x: float, y: float, side: float) -> None:
    """Draw an image in a square cell with its aspect ratio, or an empty frame if it cannot be read."""
    if image is None:
        draw_frame(axes, x, y, side, edgecolor=GREY, linewidth=0.8, linestyle="--")
        draw_text(
            axes, x + side / 2, y + side / 2 - 0.05, "unreadable", size=7, color=GREY, horizontalalignment="center"
        )
        return
    scale = side / max(image.size)
    width, height = image.width * scale, image.height * scale
    draw_pixels(axes, np.asarray(image), x + (side - width) / 2, y, width, height)
