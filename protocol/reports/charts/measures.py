"""Means with intervals of several measures, one panel a measure, one row a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ...statistics import Interval
from .chart import Chart, Table
from .drawing import MUTED, NARROW, SMALL, TEXT, Look, Sheet, fitted_line, looks, names_width, say_empty, styled
from .words import clean, counted, mean_text, number, sentences, unique

ROW, NAMES, NUMBERS = 16.0, 104.0, 66.0
MOST_METHODS, MOST_MEASURES = 12, 12
FIELDS = {field.name for field in fields(Interval)}
BETTER = {"higher": "higher is better", "lower": "lower is better"}


@styled
def measure_panels(
    measures: Mapping[str, Mapping[str, Interval | Mapping[str, Any] | None]],
    *,
    better: Mapping[str, str | None] | None = None,
    digits: Mapping[str, int] | None = None,
    zero: bool = False,
    order: Sequence[str] | None = None,
    title: str = "Measures",
    unit: str = "episode",
) -> Chart:
    """Draw the mean of each measure by each method, with its 95% interval.

    Args:
        measures: For each measure's title the mean of each method: an `Interval`, or one as a dictionary as in a
            summary; None where there is none.
        better: For a measure's title "higher" or "lower".
        digits: Digits after the point by a measure's title; 2 unless given.
        zero: Whether the values are differences, so that zero is marked and numbers have a sign.
        order: All methods of the page, for the same colors in all charts.
        title: What the chart is about.
        unit: What the values are means over.
    """
    given = list(dict.fromkeys(name for panel in measures.values() for name in panel))
    methods = dict(zip(given, unique(given), strict=True))
    styles = looks(given, order)
    found = {
        name: {method: _interval(panel.get(method)) for method in given}
        for name, panel in zip(unique(measures), measures.values(), strict=True)
    }
    places = dict(zip(found, ((digits or {}).get(name, 2) for name in measures), strict=True))
    wanted = dict(zip(found, (BETTER.get((better or {}).get(name) or "") for name in measures), strict=True))
    shown, rows = dict(list(found.items())[:MOST_MEASURES]), given[:MOST_METHODS]
    height = ROW * max(1, len(rows))
    room = names_width((methods[method] for method in rows), NAMES) + 12
    sheet = Sheet(NARROW, max(1, len(shown)) * (height + 40) + 6)
    if not shown:
        say_empty(sheet.axes(8, 8, NARROW - 16, sheet.height - 16))
    for place, (name, panel) in enumerate(shown.items()):
        top = 22 + place * (height + 40)
        heading = name + (f" ({wanted[name]})" if wanted[name] else "")
        sheet.text(8, top - 17, heading, NARROW - 16, weight="bold")
        axes = sheet.axes(room, top, NARROW - room - NUMBERS - 8, height, ylim=(max(1, len(rows)), 0))
        _panel(axes, [panel[method] for method in rows], [styles[method] for method in rows], zero)
        for row, method in enumerate(rows):
            middle = top + ROW * (row + 0.5)
            shown_name = fitted_line(methods[method], room - 13)
            sheet.text(room - 5, middle, shown_name, ha="right", va="center", size=TEXT)
            text = _short(panel[method], places[name], zero)
            sheet.text(NARROW - NUMBERS - 3, middle, text, va="center", size=SMALL, color=MUTED)
    texts = {
        name: {methods[m]: mean_text(panel[m], places[name], unit, sign=zero) for m in given}
        for name, panel in found.items()
    }
    alt = sentences(
        f"Means with their 95 % intervals of {counted(len(found), 'measure')} by {counted(len(given), 'method')}",
        *(f"{name}: {'; '.join(f'{m} {text}' for m, text in panel.items())}" for name, panel in texts.items()),
    )
    note = sentences(
        "Dot: mean, line: 95 % interval",
        _rests_on(found, unit),
        f"The first {MOST_METHODS} of {len(given)} methods are drawn" if len(given) > MOST_METHODS else "",
        f"The first {MOST_MEASURES} of {len(found)} measures are drawn" if len(found) > MOST_MEASURES else "",
    )
    table = Table(("measure", *methods.values()), tuple((name, *panel.values()) for name, panel in texts.items()))
    return Chart(clean(title), sheet.svg(alt), alt, note, table)


def _interval(value: Interval | Mapping[str, Any] | None) -> Interval | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        value = Interval(**{key: part for key, part in value.items() if key in FIELDS})
    return value if value.mean is not None and math.isfinite(value.mean) else None


def _ends(found: Interval) -> tuple[float, float]:
    """Ends of the interval; the mean itself twice without one."""
    if found.low is not None and found.high is not None:
        return found.low, found.high
    half = found.half_width or 0.0
    return found.mean - half, found.mean + half


def _panel(axes: Axes, panel: Sequence[Interval | None], styles: Sequence[Look], zero: bool) -> None:
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    axes.tick_params(labelsize=SMALL)
    ends = [end for found in panel if found is not None for end in _ends(found)] + ([0.0] if zero else [])
    if not any(panel):
        say_empty(axes)
        return
    room = 0.08 * (max(ends) - min(ends)) or abs(ends[0]) * 0.05 or 0.05
    axes.set_xlim(min(ends) - room, max(ends) + room)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if zero:
        axes.axvline(0, color=MUTED, linewidth=1)
    for row, (found, look) in enumerate(zip(panel, styles, strict=True)):
        if found is None:
            continue
        axes.plot(_ends(found), [row + 0.5] * 2, color=look.color, linewidth=2, solid_capstyle="butt")
        axes.plot([found.mean], [row + 0.5], **{**look.point, "markersize": 6})


def _short(found: Interval | None, digits: int, sign: bool) -> str:
    if found is None:
        return number(None)
    width = "" if not found.half_width else f" ± {number(found.half_width, digits)}"
    return number(found.mean, digits, sign=sign) + width


def _rests_on(found: Mapping[str, Mapping[str, Interval | None]], unit: str) -> str:
    counts = [value.count for panel in found.values() for value in panel.values() if value is not None]
    if not counts:
        return ""
    least, most = int(np.min(counts)), int(np.max(counts))
    return f"Each over {counted(most, unit)}" if least == most else f"Each over {least:,} to {counted(most, unit)}"
