"""A sheet of the test images that a method got wrong or was least certain of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..drawing import GREY, HEAD, MARGIN, draw_frame, draw_pixels, draw_text, fitted, new_page, text_width
from .image_results import ImageResults, percent

MOST_WRONG, MOST_UNSURE = 25, 10
COLUMNS = 5
SIDE, SPACE, LINE, SECTION = 1.9, 0.22, 0.135, 0.34  # inches
LINES, SIZE = 5, 7
RIGHT, WRONG = "#009e73", "#d55e00"  # Okabe and Ito's green and vermilion, which color-blind readers can distinguish
NOT_READ = "not readable now"

Load = Callable[[int], Image.Image | None]


@dataclass(frozen=True)
class _Section:
    """Some images under a heading.

    Attributes:
        title: The heading.
        places: Places of the images in the results.
    """

    title: str
    places: Sequence[int]

    @property
    def height(self) -> float:
        return SECTION + math.ceil(len(self.places) / COLUMNS) * (SIDE + LINES * LINE + SPACE)


def result_sheet(results: ImageResults, load: Load, title: str) -> Figure:
    """Draw the wrong images, the most certain first, and the right ones that were least certain.

    At most 25 wrong and 10 right images are drawn; the sheet says how many there are. Under each stand its class, the
    predicted class and the next one with their probabilities, the class that the backbone predicts without the tuner,
    and the file.

    Args:
        results: What the method says of each image.
        load: Returns the image at a place of the results; None if it cannot be read.
        title: First line of the sheet.
    """
    wrong, unsure = results.wrong, results.unsure
    sections = [
        _Section(_heading(wrong[:MOST_WRONG], wrong, "wrong, the most certain first"), wrong[:MOST_WRONG]),
        _Section(_heading(unsure[:MOST_UNSURE], unsure, "right, the least certain first"), unsure[:MOST_UNSURE]),
    ]
    sections = [section for section in sections if section.places]
    columns = min(COLUMNS, max(len(section.places) for section in sections))
    width = max(2 * MARGIN + columns * (SIDE + SPACE) - SPACE, 7.0)
    height = HEAD - 0.2 + sum(section.height for section in sections) + MARGIN
    images = len(results.labels)
    notes = [f"{len(wrong)} of {images} test images wrong" if wrong else f"none of {images} test images wrong"]
    notes.append("thick orange frame: wrong · probabilities are the softmax of the scores")
    figure, axes = new_page(
        width, height, fitted(title, width - 2 * MARGIN, 12, "bold"), fitted(" · ".join(notes), width - 2 * MARGIN, 8)
    )
    top = HEAD - 0.2
    for section in sections:
        _draw_section(axes, section, results, load, top)
        top += section.height
    return figure


def _heading(shown: Sequence[int], every: Sequence[int], what: str) -> str:
    return f"{len(shown)} of {len(every)} {what}" if len(shown) < len(every) else f"{len(every)} {what}"


def _draw_section(axes: Axes, section: _Section, results: ImageResults, load: Load, top: float) -> None:
    draw_text(axes, MARGIN, top, section.title, size=9, weight="bold")
    for number, place in enumerate(section.places):
        row, column = divmod(number, COLUMNS)
        x = MARGIN + column * (SIDE + SPACE)
        y = top + SECTION - 0.08 + row * (SIDE + LINES * LINE + SPACE)
        _draw_image(axes, load(place), x, y, wrong=not results.right[place])
        for line, (start, name, style) in enumerate(_captions(results, place)):
            weight = str(style.get("weight", "normal"))
            text = start + fitted(name, SIDE - text_width(start, SIZE, weight), SIZE, weight)
            draw_text(axes, x, y + SIDE + 0.05 + line * LINE, text, size=SIZE, **style)


def _draw_image(axes: Axes, image: Image.Image | None, x: float, y: float, *, wrong: bool) -> None:
    if image is None:
        draw_text(axes, x + SIDE / 2, y + SIDE / 2, NOT_READ, size=7, color=GREY, horizontalalignment="center")
    else:
        pixels: npt.NDArray[np.uint8] = np.asarray(image.convert("RGB"))
        width, height = (length * SIDE / max(image.size) for length in image.size)
        draw_pixels(axes, pixels, x + (SIDE - width) / 2, y + (SIDE - height) / 2, width, height)
    style = {"edgecolor": WRONG, "linewidth": 3.0} if wrong else {"edgecolor": RIGHT, "linewidth": 1.2}
    draw_frame(axes, x, y, SIDE, **style)


def _captions(results: ImageResults, place: int) -> list[tuple[str, str, dict[str, object]]]:
    """Return the lines under an image: a start that is kept whole, a name that may be shortened, and how it looks."""
    names, tuned, zero_shot = results.class_names, results.tuned, results.zero_shot
    true, guess = results.labels[place], tuned.first[place]
    bold, said = {"weight": "bold"}, percent(tuned.probability[place])
    lines: list[tuple[str, str, dict[str, object]]] = []
    if guess == true:
        lines.append((f"{said} ", _shown(names[guess]), {**bold}))
    else:
        lines.append(("true: ", _shown(names[true]), {**bold}))
        lines.append((f"as: {said} ", _shown(names[guess]), {**bold, "color": WRONG}))
    lines.append((f"then: {percent(tuned.second_probability[place])} ", _shown(names[tuned.second[place]]), {}))
    if zero_shot is not None:
        start = f"zero-shot: {percent(zero_shot.probability[place])} "
        lines.append((start, _shown(names[zero_shot.first[place]]), {}))
    lines.append(("", results.images[place].rpartition("/")[2], {"color": GREY}))
    return lines


def _shown(name: str) -> str:
    return " ".join(name.replace("_", " ").split()) or name
