"""A measure over two options, such as lambda and beta, with the numbers written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from .chart import Chart, Table
from .drawing import (
    COLORS,
    GRAY,
    NARROW,
    PAPER,
    SMALL,
    TEXT,
    WIDE,
    Sheet,
    fitted_line,
    say_empty,
    shade_text,
    shades,
    styled,
)
from .words import Numbers, clean, number, numbers, sentences

CELL_HEIGHT, LEFT = 34.0, 62.0
MARK = COLORS[1]
MOST_NUMBERS = 12  # columns up to which each cell has its number


@styled
def heat_map(
    x_name: str,
    xs: Sequence[Any],
    y_name: str,
    ys: Sequence[Any],
    values: Any,
    published: tuple[Any, Any] | None = None,
    *,
    half_widths: Any = None,
    counts: Any = None,
    measure: str = "accuracy (%)",
    digits: int = 1,
    mark: str = "published setting",
) -> Chart:
    """Draw a measure over two options, with each cell's number, and a frame around the published setting.

    Args:
        x_name: The option of the columns.
        xs: Its values.
        y_name: The option of the rows.
        ys: Its values.
        values: Means [len(ys), len(xs)]; None where there is none.
        published: The setting (x, y) to mark.
        half_widths: Half widths of the 95% intervals, in the shape of `values`.
        counts: Number of values behind each mean, in the shape of `values`.
        measure: What the numbers are.
        digits: Digits after the point.
        mark: What the marked setting is called.
    """
    shape = (len(ys), len(xs))
    grid = _grid(values, shape)
    widths, rests = _grid(half_widths, shape), _grid(counts, shape)
    texts = [[_text(grid[r, c], widths[r, c], digits) for c in range(shape[1])] for r in range(shape[0])]
    marked = _place(published, xs, ys)
    sheet = _draw((clean(x_name), xs), (clean(y_name), ys), grid, widths, marked, digits)
    said = sentences(
        f"{measure} over {clean(x_name)} ({_listed(xs)}) and {clean(y_name)} ({_listed(ys)})",
        *_extremes(grid, texts, (clean(x_name), xs), (clean(y_name), ys)),
        _at(marked, texts, mark, published, xs, ys),
    )
    note = sentences(
        f"Columns: {clean(x_name)}, rows: {clean(y_name)}, numbers: {measure}",
        "" if half_widths is None else "± is the 95 % interval",
        _rests(rests),
        f"Frame: {mark}" if marked else f"The {mark} is not among these" if published is not None else "",
        "" if np.isfinite(grid).all() else "Hatched: no value",
    )
    rows = tuple((_value(y), *line) for y, line in zip(ys, texts, strict=True))
    table = Table((f"{clean(y_name)} \\ {clean(x_name)}", *map(_value, xs)), rows)
    title = f"{clean(x_name)} × {clean(y_name)}"
    return Chart(title, sheet.svg(said), said, note, table, wide=len(xs) > 7)


def _grid(values: Any, shape: tuple[int, int]) -> Numbers:
    if values is None or 0 in shape:
        return np.full(shape, np.nan)
    return numbers([list(row) for row in values]).reshape(shape)


def _text(value: float, half_width: float, digits: int) -> str:
    return number(value, digits) + (f" ± {number(half_width, digits)}" if np.isfinite(half_width) else "")


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else clean(value, 20)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(_value, values))


def _same(first: Any, second: Any) -> bool:
    a, b = numbers([first, second])
    return bool(np.isclose(a, b, rtol=1e-9)) if np.isfinite([a, b]).all() else first == second


def _place(published: tuple[Any, Any] | None, xs: Sequence[Any], ys: Sequence[Any]) -> tuple[int, int] | None:
    """Row and column of the marked setting."""
    if published is None:
        return None
    columns = [place for place, x in enumerate(xs) if _same(x, published[0])]
    rows = [place for place, y in enumerate(ys) if _same(y, published[1])]
    return (rows[0], columns[0]) if rows and columns else None


def _draw(
    across: tuple[str, Sequence[Any]],
    down: tuple[str, Sequence[Any]],
    grid: Numbers,
    widths: Numbers,
    marked: tuple[int, int] | None,
    digits: int,
) -> Sheet:
    (x_name, xs), (y_name, ys) = across, down
    width = NARROW if len(xs) <= 7 else WIDE
    rows, columns = max(1, len(ys)), max(1, len(xs))
    height = CELL_HEIGHT * rows
    sheet = Sheet(width, height + 44)
    axes = sheet.axes(LEFT, 6, width - LEFT - 8, height, xlim=(0, columns), ylim=(rows, 0))
    axes.set_axis_off()
    sheet.text(LEFT + (width - LEFT - 8) / 2, height + 26, x_name, ha="center")
    sheet.text(6, 6 + height / 2, y_name, rotation=90, rotation_mode="anchor", ha="center", va="top")
    if not np.isfinite(grid).any():
        say_empty(axes)
        return sheet
    for place, y in enumerate(ys):
        middle = 6 + CELL_HEIGHT * (place + 0.5)
        sheet.text(LEFT - 5, middle, fitted_line(_value(y), LEFT - 24), ha="right", va="center")
    step = (width - LEFT - 8) / columns
    for place, x in enumerate(xs):
        sheet.text(LEFT + step * (place + 0.5), height + 10, fitted_line(_value(x), step - 2), ha="center")
    _cells(axes, grid, widths, digits)
    if marked is not None:
        row, column = marked
        for color, wide in ((PAPER, 6.0), (MARK, 3.0)):
            frame: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": wide, "clip_on": False}
            axes.add_patch(Rectangle((column, row), 1, 1, **frame))
    return sheet


def _cells(axes: Any, grid: Numbers, widths: Numbers, digits: int) -> None:
    low, high = np.nanmin(grid), np.nanmax(grid)
    colors = shades((grid - low) / (high - low) if high > low else np.where(np.isfinite(grid), 0.5, np.nan))
    for row, column in np.ndindex(*grid.shape):
        sound = bool(np.isfinite(grid[row, column]))
        style = {"facecolor": colors[row, column], "linewidth": 0} if sound else {"fill": False, "hatch": "///"}
        axes.add_patch(Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, edgecolor=GRAY, **style))
        if not sound or grid.shape[1] > MOST_NUMBERS:
            continue
        color, value = shade_text(colors[row, column]), number(grid[row, column], digits)
        interval = bool(np.isfinite(widths[row, column]))
        style = {"color": color, "ha": "center"}
        height, side = (0.48, "bottom") if interval else (0.5, "center")
        axes.text(column + 0.5, row + height, value, size=TEXT, va=side, **style)
        if interval:
            text = f"±{number(widths[row, column], digits)}"
            axes.text(column + 0.5, row + 0.54, text, size=SMALL, va="top", **style)


def _extremes(
    grid: Numbers, texts: list[list[str]], across: tuple[str, Sequence[Any]], down: tuple[str, Sequence[Any]]
) -> list[str]:
    if not np.isfinite(grid).any():
        return ["No values"]
    said = []
    for word, place in (("Highest", np.nanargmax(grid)), ("Lowest", np.nanargmin(grid))):
        row, column = divmod(int(place), grid.shape[1])
        at = f"{across[0]} {_value(across[1][column])}, {down[0]} {_value(down[1][row])}"
        said.append(f"{word}: {texts[row][column]} at {at}")
    missing = int((~np.isfinite(grid)).sum())
    return [*said, f"{missing} of {grid.size} without a value"] if missing else said


def _at(
    marked: tuple[int, int] | None,
    texts: list[list[str]],
    mark: str,
    published: tuple[Any, Any] | None,
    xs: Sequence[Any],
    ys: Sequence[Any],
) -> str:
    if published is None:
        return ""
    if marked is None:
        return f"The {mark} ({_value(published[0])}, {_value(published[1])}) is not among these"
    row, column = marked
    return f"At the {mark} ({_value(xs[column])}, {_value(ys[row])}): {texts[row][column]}"


def _rests(counts: Numbers) -> str:
    known = counts[np.isfinite(counts)]
    if not len(known):
        return ""
    low, high = int(known.min()), int(known.max())
    return f"Each number rests on {low:,} values" if low == high else f"Each number rests on {low:,} to {high:,} values"
