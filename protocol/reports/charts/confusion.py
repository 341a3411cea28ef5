"""A confusion matrix: counts, and the shares of each row as shades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .chart import Chart, Table
from .drawing import (
    GRAY,
    NARROW,
    SMALL,
    TEXT,
    WIDE,
    Sheet,
    fitted_line,
    names_width,
    say_empty,
    shade_text,
    shades,
    styled,
)
from .words import Numbers, counted, listed, numbers, sentences, unique

MOST_NUMBERS = 12  # classes up to which each cell has its numbers
MOST_SHARES = 7  # classes up to which its share stands there, too
MOST_NARROW = 30  # classes up to which two matrices fit next to each other on a page
MOST_NAMES = 100


@styled
def confusion_matrix(counts: Any, class_names: Sequence[str], *, title: str = "Confusion matrix") -> Chart:
    """Draw how many images of each class (rows) were taken for each class (columns).

    The shade is the share of the row. Up to 12 classes each cell has its count, and its share in percent up to 7; up
    to 100 classes the rows and columns have names.

    Args:
        counts: Counts [W, W]; None and what is not finite counts as 0.
        class_names: Names of the W classes.
        title: What the matrix is of.
    """
    names = unique(class_names)
    table = np.nan_to_num(numbers(counts)).reshape(len(names), len(names)) if len(names) else np.zeros((0, 0))
    totals = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, totals, out=np.full(table.shape, np.nan), where=totals > 0)
    sheet = _draw(table, shares, names)
    alt = _alt(table, names)
    empty = int((totals == 0).sum())
    note = sentences(
        f"{counted(int(table.sum()), 'image')}. Rows: true class, columns: predicted class. Shade: share of the row",
        f"{counted(empty, 'class')} without images" if empty else "",
        f"Rows and columns of more than {MOST_NAMES} classes have no names" if len(names) > MOST_NAMES else "",
    )
    rows = tuple((name, *(f"{count:g}" for count in row)) for name, row in zip(names, table, strict=True))
    short = Table(("true class", *names), rows) if 0 < len(names) <= MOST_NUMBERS else None
    return Chart(title, sheet.svg(alt), alt, note, short, wide=len(names) > MOST_NARROW)


def _draw(table: Numbers, shares: Numbers, names: Sequence[str]) -> Sheet:
    many = len(names)
    width = NARROW if many <= MOST_NARROW else WIDE
    named = 1 <= many <= MOST_NAMES
    size = TEXT if many <= MOST_NUMBERS else max(4.0, min(TEXT, 0.9 * (width - 100) / many))
    slanted = many <= MOST_NUMBERS
    left, top = 30.0, 20.0
    if named:
        longest = names_width(names, 120.0, size)
        left, top = longest + 24, min(longest * 0.707 + 14, 64.0) if slanted else longest + 14
    # Slanted names of columns reach to the right of the last one.
    right = max(10.0, top - 8 - (width - left - 40) / max(many, 1) / 2) if named and slanted else 10.0
    side = width - left - right
    cell = side / max(many, 1)
    sheet = Sheet(width, top + side + 22)
    axes = sheet.axes(left, top, side, side)
    axes.set_axis_off()
    sheet.text(left + side / 2, top + side + 5, "predicted class", ha="center")
    sheet.text(11, top + side / 2, "true class", rotation=90, va="center", rotation_mode="anchor", ha="center")
    if table.sum() == 0:
        say_empty(axes)
        return sheet
    _cells(axes, table, shares)
    for place, name in enumerate(names if named else ()):
        middle = (place + 0.5) * cell
        sheet.text(left - 4, top + middle, fitted_line(name, left - 20, size), ha="right", va="center", size=size)
        column: dict[str, Any] = {"rotation_mode": "anchor", "ha": "left", "size": size}
        if slanted:
            line = fitted_line(name, 1.414 * (top - 14), size)
            sheet.text(left + middle, top - 3, line, rotation=45, va="bottom", **column)
        else:
            sheet.text(left + middle, top - 4, fitted_line(name, top - 10, size), rotation=90, va="center", **column)
    return sheet


def _cells(axes: Any, table: Numbers, shares: Numbers) -> None:
    many = len(table)
    if many > MOST_NUMBERS:
        axes.imshow(shades(shares), extent=(0, many, many, 0), interpolation="none", aspect="auto")
        axes.plot([0, many, many, 0, 0], [0, 0, many, many, 0], color=GRAY, linewidth=0.8)
        return
    axes.set(xlim=(0, many), ylim=(many, 0))
    colors = shades(shares)
    for row, column in np.ndindex(many, many):
        place = {"linewidth": 1.2, "edgecolor": GRAY if row == column else "none"}
        axes.add_patch(_square(column, row, facecolor=colors[row, column], **place))
        if table[row, column] == 0:
            continue
        color = shade_text(colors[row, column])
        lines = f"{table[row, column]:g}"
        style = {"ha": "center", "color": color, "size": TEXT if many <= MOST_SHARES else SMALL}
        if many <= MOST_SHARES:
            axes.text(column + 0.5, row + 0.46, lines, va="bottom", **style)
            share = f"{100 * shares[row, column]:.0f} %"
            axes.text(column + 0.5, row + 0.54, share, va="top", **{**style, "size": SMALL})
        else:
            axes.text(column + 0.5, row + 0.5, lines, va="center", **style)


def _square(x: float, y: float, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, **style)


def _alt(table: Numbers, names: Sequence[str]) -> str:
    total, right = int(table.sum()), int(np.trace(table))
    if total == 0:
        return f"Confusion matrix of {counted(len(names), 'class')} without images."
    wrong = table - np.diag(np.diag(table))
    turn = [place for place in np.argsort(-wrong, axis=None, kind="stable") if wrong.flat[place] > 0][:3]
    pairs = []
    for row, column in (divmod(int(place), len(names)) for place in turn):
        share = f"{int(wrong[row, column])} of {counted(int(table[row].sum()), 'image')}"
        pairs.append(f"{names[row]} taken for {names[column]} ({share})")
    return sentences(
        f"Confusion matrix of {counted(len(names), 'class')} and {counted(total, 'image')}",
        f"{right:,} right, {100 * right / total:.1f} %",
        f"Most frequent errors: {listed(pairs)}" if pairs else "No errors",
    )
