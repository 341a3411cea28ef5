"""Drawing for the episode picture and the contact sheet: a page in inches, text, images, and the PNG file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

from .files import write_atomically

GREY, FRAME = "#666666", "#b3b3b3"
MARGIN, HEAD = 0.2, 0.85  # inches
DOTS_PER_INCH = 120


def new_page(width: float, height: float, title: str, notes: str) -> tuple[Figure, Axes]:
    """Return a white figure of the given size in inches, y axis pointing down, with a title and a line of notes.

    The figure does not belong to pyplot, so no global state changes.
    """
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0.0, width), ylim=(height, 0.0))
    axes.set_axis_off()
    draw_text(axes, MARGIN, 0.14, title, size=12, weight="bold")
    draw_text(axes, MARGIN, 0.4, notes, size=8, color=GREY)
    return figure, axes


def draw_text(axes: Axes, x: float, y: float, text: str, **style: object) -> None:
    """Draw a text without math markup with its upper left corner at (x, y) inches; `style` can align it differently."""
    aligned = {"verticalalignment": "top", "parse_math": False, "linespacing": 1.15, **style}
    axes.text(x, y, text, **aligned)  # type: ignore[arg-type]


def draw_pixels(axes: Axes, pixels: npt.NDArray[Any], x: float, y: float, width: float, height: float) -> None:
    """Draw an image [H, W, 3] with its upper left corner at (x, y) inches, in a thin frame that shows where it ends."""
    axes.imshow(pixels, extent=(x, x + width, y + height, y), interpolation="antialiased", aspect="auto")
    right, bottom = x + width, y + height
    axes.plot([x, right, right, x, x], [y, y, bottom, bottom, y], color=FRAME, linewidth=0.6, zorder=0.5)


def draw_frame(axes: Axes, x: float, y: float, side: float, **style: Any) -> None:
    """Draw an empty square with its upper left corner at (x, y) inches."""
    axes.add_patch(Rectangle((x, y), side, side, fill=False, **style))


def fitted(text: str, width: float, size: float, weight: str = "normal") -> str:
    """Return the text; if it is wider than `width` inches at this size in points, its middle is replaced by …."""
    kept, short = len(text), text
    width *= 0.96  # room for the rounding of drawn letters to whole pixels
    while (needed := text_width(short, size, weight)) > width and kept > 1:
        kept -= max(1, int(kept * (1 - width / needed)))
        short = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width in inches of a text of this size in points."""
    font = FontProperties(size=size, weight=weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72)


def save_png(path: Path, figure: Figure, remedy: str) -> None:
    """Write a figure as a PNG file.

    Args:
        path: The file.
        figure: The figure.
        remedy: What the user can do if the file cannot be written; ends the error message.

    Raises:
        DtrapError: The file cannot be written.
    """
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font lacks the script of a class name
        figure.savefig(content, format="png", dpi=DOTS_PER_INCH)
    write_atomically(path, content.getvalue(), remedy)
