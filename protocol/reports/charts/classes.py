"""The accuracy of each class, one row a class, one marker a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .chart import Chart, Table
from .drawing import GRAY, MUTED, NARROW, PAPER, SMALL, TEXT, Sheet, fitted_line, looks, names_width, say_empty, styled
from .words import Numbers, counted, listed, number, numbers, sentences, unique

ROW, NAMES = 15.0, 120.0
MOST_CLASSES, MOST_METHODS = 40, 8


@styled
def per_class_accuracy(
    by_method: Mapping[str, Mapping[str, Any]], *, order: Sequence[str] | None = None, unit: str = "episode"
) -> Chart:
    """Draw the accuracy of each class by each method, the class with the lowest one first.

    Of more than 40 classes, the 20 with the lowest and the 20 with the highest accuracy are drawn.

    Args:
        by_method: For each method the accuracy of its classes in percent: a number, or a mapping with `mean` and
            `episodes` as in a summary.
        order: All methods of the page, for the same colors in all charts.
        unit: What an episode is called.
    """
    classes = list(dict.fromkeys(name for values in by_method.values() for name in values))
    values = numbers([[_mean(given.get(name)) for name in classes] for given in by_method.values()])
    values = values.reshape(len(by_method), len(classes))
    methods = unique(by_method)
    styles = dict(zip(methods, looks(by_method, order).values(), strict=True))
    places, cut = _chosen(values)
    shown_methods = methods[:MOST_METHODS]
    names = unique(classes)
    sheet = Sheet(NARROW, 44 + ROW * max(3, len(places)) + 14 * len(shown_methods))
    means = {name: _overall(row) for name, row in zip(methods, values, strict=True)}
    legend = {name: styles[name] for name in shown_methods}
    top = sheet.legend(legend, {name: means[name] for name in shown_methods}, lines=False) + 6
    count = max(3, len(places))
    room = names_width([names[place] for place in places], NAMES)
    axes = sheet.axes(room + 4, top, NARROW - room - 14, ROW * count, ylim=(count, 0))
    _draw(axes, values[: len(shown_methods), places], list(styles.values()))
    axes.set_xlabel("accuracy (%)")
    for row, place in enumerate(places):
        height = top + ROW * (row + 0.5)
        sheet.text(room - 2, height, fitted_line(names[place], room - 2), va="center", ha="right", size=TEXT)
    if cut:
        axes.axhline(cut, color=GRAY, linestyle=(0, (3, 2)), linewidth=1)
        between = f"{counted(len(classes) - len(places), 'class')} between"
        style: dict[str, Any] = {"size": SMALL, "color": MUTED, "backgroundcolor": PAPER}
        sheet.text(NARROW - 8, top + ROW * cut, between, va="center", ha="right", **style)
    alt = sentences(
        f"Accuracy in percent of {counted(len(classes), 'class')} by {counted(len(methods), 'method')}",
        *(_sentence(name, row, names, means[name]) for name, row in zip(methods, values, strict=True)),
    )
    note = sentences(
        "Classes in the order of their accuracy, the lowest first",
        f"The {cut} lowest and the {len(places) - cut} highest of {len(classes):,} classes" if cut else "",
        _rests_on(by_method, unit),
        f"The first {MOST_METHODS} of {len(methods)} methods are drawn" if len(methods) > MOST_METHODS else "",
    )
    rows = tuple((names[place], *map(number, values[:, place].tolist())) for place in places)
    return Chart("Accuracy per class", sheet.svg(alt), alt, note, Table(("class", *methods), rows))


def _mean(value: Any) -> Any:
    return value.get("mean") if isinstance(value, Mapping) else value


def _chosen(values: Numbers) -> tuple[list[int], int]:
    """Places of the classes to draw, by their mean over the methods, and the row where some are left out, or 0."""
    known = np.flatnonzero(np.isfinite(values).any(axis=0))
    means = np.nanmean(values[:, known], axis=0) if len(known) else np.empty(0)
    places = known[np.argsort(means, kind="stable")].tolist()
    half = MOST_CLASSES // 2
    return (places[:half] + places[-half:], half) if len(places) > MOST_CLASSES else (places, 0)


def _draw(axes: Any, values: Numbers, styles: Sequence[Any]) -> None:
    axes.set_yticks([])
    axes.grid(axis="x")
    if values.size == 0 or not np.isfinite(values).any():
        say_empty(axes)
        return
    heights = np.arange(values.shape[1]) + 0.5
    if len(values) > 1:
        known = np.isfinite(values).any(axis=0)
        ends = np.nanmin(values[:, known], axis=0), np.nanmax(values[:, known], axis=0)
        axes.hlines(heights[known], *ends, color=GRAY, linewidth=1)
    for row, look in zip(values, styles, strict=False):
        axes.plot(row, heights, **{**look.point, "markersize": 5.5}, alpha=0.9)
    low, high = np.nanmin(values), np.nanmax(values)
    room = max(2.0, 0.06 * (high - low))
    axes.set_xlim(max(low - room, -2), min(high + room, 102))


def _overall(row: Numbers) -> str:
    known = row[np.isfinite(row)]
    return f"mean {number(known.mean())} over {counted(len(known), 'class')}" if len(known) else "no values"


def _sentence(name: str, row: Numbers, names: Sequence[str], mean: str) -> str:
    known = [place for place in np.argsort(row, kind="stable") if np.isfinite(row[place])]
    if not known:
        return f"{name}: no values"
    lowest = listed([f"{names[place]} {number(row[place])}" for place in known[:3]])
    highest = listed([f"{names[place]} {number(row[place])}" for place in known[-3:][::-1]])
    return f"{name}: {mean}; lowest {lowest}; highest {highest}"


def _rests_on(by_method: Mapping[str, Mapping[str, Any]], unit: str) -> str:
    counts = [
        value["episodes"]
        for values in by_method.values()
        for value in values.values()
        if isinstance(value, Mapping) and value.get("episodes") is not None
    ]
    if not counts:
        return ""
    if min(counts) == max(counts):
        return f"Each value is a mean over {counted(max(counts), unit)}"
    return f"Each value is a mean over {min(counts):,} to {counted(max(counts), unit)}"
