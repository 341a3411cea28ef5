"""The distribution of paired differences, with mean, interval and zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ...statistics import CORRECTED, STUDENT, Interval
from .chart import Chart, Table
from .drawing import INK, MUTED, NARROW, TEXT, Look, Sheet, fitted_line, looks, say_empty, styled
from .words import Numbers, counted, interval_of, mean_text, number, numbers, present, sentences, unique

ROW = 62.0  # points: the name, the bars and the interval of one label
MOST_BARS, MOST_LABELS = 40, 12


@styled
def difference_distribution(
    differences: Mapping[str, Any],
    *,
    unit: str = "points",
    noun: str = "pair",
    order: Sequence[str] | None = None,
    resampled: Mapping[str, float | None] | None = None,
) -> Chart:
    """Draw the paired differences of each label as bars over one scale, with their mean and its 95% interval below.

    Args:
        differences: For each label, such as "svl-ra minus baseline", the difference of each pair.
        unit: Unit of the differences.
        noun: What a pair is called.
        order: All labels of the page, for the same colors in all charts.
        resampled: n_test/n_train of those labels whose pairs are repeats of held-out images.
    """
    found = dict(zip(unique(differences), (present(values) for values in differences.values()), strict=True))
    missing = sum(np.size(numbers(values)) for values in differences.values()) - sum(map(len, found.values()))
    styles = dict(zip(found, looks(differences, order).values(), strict=True))
    ratios = [(resampled or {}).get(label) for label in differences]
    intervals = {name: interval_of(values, ratio) for (name, values), ratio in zip(found.items(), ratios, strict=True)}
    texts = {name: mean_text(intervals[name], 2, noun, sign=True) for name in found}
    shown = dict(list(found.items())[:MOST_LABELS])
    sheet = Sheet(NARROW, 44 + ROW * max(1, len(shown)))
    axes = sheet.axes(10, 4, NARROW - 20, sheet.height - 42, ylim=(max(1, len(shown)), 0))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"paired difference ({unit})")
    _scale(axes, shown, [intervals[name] for name in shown])
    for row, (name, values) in enumerate(shown.items()):
        _draw(axes, row, name, values, styles[name], texts[name], intervals[name])
    alt = sentences(
        f"Bars: how often each difference in {unit} occurs; below, the mean with its 95 % interval",
        *(_sentence(name, values, texts[name]) for name, values in found.items()),
    )
    kinds = dict.fromkeys(STUDENT if ratio is None else CORRECTED for ratio in ratios) or [STUDENT]
    note = sentences(
        f"Bars count the pairs, the dot is their mean, the line its 95 % interval ({' or '.join(kinds)})",
        f"{counted(missing, 'value')} missing and left out" if missing else "",
        f"The first {MOST_LABELS} of {len(found)} are drawn" if len(found) > len(shown) else "",
    )
    rows = tuple((name, texts[name], *map(str, _signs(values))) for name, values in found.items())
    table = Table(("difference", f"mean ± 95 % interval ({unit})", "above 0", "equal", "below 0"), rows)
    return Chart("Paired differences", sheet.svg(alt), alt, note, table)


def bars(values: Numbers) -> tuple[Numbers, Numbers, float]:
    """Return the centers, heights and width of bars that suit values on a grid, as shares of some images are.

    Each distinct value has its bar if they are few; else a bar takes up a whole number of steps of the grid.
    """
    rounded = values.round(6)
    distinct, counts = np.unique(rounded, return_counts=True)
    step = float(np.diff(distinct).min()) if len(distinct) > 1 else 1.0
    span = float(np.ptp(distinct))
    if span / step <= MOST_BARS:
        return distinct, counts.astype(float), step
    on_grid = np.allclose(np.round(distinct / step), distinct / step, atol=0.02)
    few = span / np.clip(np.ceil(np.sqrt(len(values))), 5, MOST_BARS)
    width = step * np.ceil(span / step / MOST_BARS) if on_grid else few
    places, counts = np.unique(np.round(rounded / width), return_counts=True)
    return places * width, counts.astype(float), float(width)


def _scale(axes: Axes, shown: Mapping[str, Numbers], intervals: Sequence[Interval | None]) -> None:
    every = np.concatenate([np.empty(0), *shown.values()])
    if len(every) == 0:
        say_empty(axes)
        return
    ends = [end for found in intervals if found is not None for end in (found.low, found.high) if end is not None]
    low, high = min(0, every.min(), *ends, 0), max(0, every.max(), *ends, 0)
    room = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)


def _draw(axes: Axes, row: int, name: str, values: Numbers, look: Look, text: str, found: Interval | None) -> None:
    width = NARROW - 20
    axes.text(0, row + 0.03, fitted_line(name, width * 0.55), transform=axes.get_yaxis_transform(), va="top", size=TEXT)
    axes.text(1, row + 0.03, text, transform=axes.get_yaxis_transform(), va="top", ha="right", color=MUTED)
    if found is None:
        return
    centers, heights, thick = bars(values)
    ground = row + 0.8
    axes.bar(centers, -0.5 * heights / heights.max(), 0.9 * thick, ground, color=look.color, alpha=0.5, linewidth=0)
    axes.plot([0, 0], [row + 0.27, row + 0.97], color=INK, linewidth=1)
    middle = row + 0.89
    if found.half_width:
        ends = [found.mean - found.half_width, found.mean + found.half_width]
        axes.plot(ends, [middle] * 2, color=look.color, linewidth=2.4, solid_capstyle="butt")
    axes.plot([found.mean], [middle], **{**look.point, "marker": "o", "markersize": 6})


def _signs(values: Numbers) -> tuple[int, int, int]:
    return int((values > 0).sum()), int((values == 0).sum()), int((values < 0).sum())


def _sentence(name: str, values: Numbers, text: str) -> str:
    if len(values) == 0:
        return f"{name}: no value"
    above, equal, below = _signs(values)
    ends = f"from {number(values.min(), 2, sign=True)} to {number(values.max(), 2, sign=True)}"
    return f"{name}: mean {text}, {ends}; {above} above zero, {equal} equal, {below} below"
