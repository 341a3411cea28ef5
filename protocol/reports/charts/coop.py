"""CoOp's figure: accuracy over the number of shots, the mean over all sets first, then one panel a set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .chart import Chart, Table
from .drawing import INK, SMALL, WIDE, Look, Sheet, looks, say_empty, styled
from .words import Numbers, counted, number, numbers, sentences, unique

COLUMNS, PANEL, GAP = 4, 104.0, 36.0
MEAN = "Mean"
MOST_METHODS = 8


class Line(NamedTuple):
    """Means of one method over its shots, with half widths of their intervals; NaN where there is none."""

    shots: Numbers
    means: Numbers
    half_widths: Numbers


Panel = dict[str, Line]


@styled
def coop_panels(
    panels: Mapping[str, Mapping[str, tuple[Any, Any, Any]]],
    zero_shot: Mapping[str, float | None],
    *,
    mean: Mapping[str, tuple[Any, Any, Any]] | None = None,
    order: Sequence[str] | None = None,
    rests_on: str = "",
) -> Chart:
    """Draw accuracy over shots as in CoOp's figure: a star for zero-shot, one line a method, twelve panels of 11 sets.

    Args:
        panels: For each set and method the shots, the means in percent and the half widths of their 95% intervals
            (None where there is none).
        zero_shot: Zero-shot accuracy of each set in percent.
        mean: The first panel, where it is known with its intervals. Else it is the mean over all sets, without
            intervals, at those shots that a method has in all of them.
        order: All methods of the page, for the same colors in all charts.
        rests_on: What an interval rests on, such as "3 seeds".
    """
    given = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    methods = unique(given)
    renamed = dict(zip(given, methods, strict=True))
    styles = dict(zip(methods, looks(given, order).values(), strict=True))
    sets = {
        title: {renamed[name]: _line(line) for name, line in panel.items()}
        for title, panel in zip(unique(panels), panels.values(), strict=True)
    }
    stars = dict(zip(sets, numbers([zero_shot.get(title) for title in panels]).tolist(), strict=True))
    first = _mean(sets, methods) if mean is None else {renamed.get(k, k): _line(line) for k, line in mean.items()}
    first_star = float(np.mean(list(stars.values()))) if stars else math.nan  # NaN if one is missing
    every = {MEAN: (first, first_star), **{title: (panel, stars[title]) for title, panel in sets.items()}}
    sheet = _draw(every, styles)
    alt = sentences(
        f"Accuracy in percent over the number of shots: the mean over {counted(len(sets), 'set')}, then each set",
        *(_sentence(f"{title} over {counted(len(sets), 'set')}" if title == MEAN else title, panel, star)
          for title, (panel, star) in every.items()),
    )  # fmt: skip
    note = sentences(
        "Shots: training images per class. Star: zero-shot",
        "Bars: 95 % interval" + (f" over {rests_on}" if rests_on else ""),
        _mean_note(sets, mean, first_star),
        f"The first {MOST_METHODS} of {len(methods)} methods are drawn" if len(methods) > MOST_METHODS else "",
    )
    return Chart("Accuracy (%) over shots", sheet.svg(alt), alt, note, _table(every, methods), wide=True)


def _line(given: tuple[Any, Any, Any]) -> Line:
    shots, means, widths = (np.ravel(numbers([] if part is None else part)) for part in given)
    if len(shots) != len(means):
        raise ValueError(f"expected one mean per shot, got {len(shots)} shots and {len(means)} means")
    widths = widths if len(widths) == len(means) else np.full(len(means), np.nan)
    turn = np.argsort(shots, kind="stable")
    return Line(shots[turn], means[turn], widths[turn])


def _mean(sets: Mapping[str, Panel], methods: Sequence[str]) -> Panel:
    """Mean over all sets of each method, at the shots with a value in every set."""
    found = {}
    for method in methods:
        values = [
            {shot: value for shot, value in zip(line.shots, line.means, strict=True) if np.isfinite(value)}
            for line in (panel.get(method, Line(*[np.empty(0)] * 3)) for panel in sets.values())
        ]
        shots = sorted(set.intersection(*map(set, values))) if values else []
        means = [float(np.mean([value[shot] for value in values])) for shot in shots]
        found[method] = Line(np.array(shots, dtype=float), np.array(means), np.full(len(shots), np.nan))
    return found


def _mean_note(sets: Mapping[str, Panel], mean: object, star: float) -> str:
    parts = [] if mean is not None else ["The mean has the shots that all sets have, and no interval of its own"]
    parts += [] if math.isfinite(star) or not sets else ["no zero-shot mean, since a set has none"]
    return "; ".join(parts)


def _draw(every: Mapping[str, tuple[Panel, float]], styles: Mapping[str, Look]) -> Sheet:
    shown = dict(list(styles.items())[:MOST_METHODS])
    rows = math.ceil(len(every) / COLUMNS)
    legend_rows = max(1, math.ceil(len(shown) / 2))
    sheet = Sheet(WIDE, 14.0 * legend_rows + 12 + rows * (PANEL + GAP) + 8)
    _legend(sheet, shown)
    top = 14.0 * legend_rows + 26
    shots = sorted({shot for panel, _ in every.values() for line in panel.values() for shot in line.shots})
    room = (WIDE - 30) / COLUMNS
    for place, (title, (panel, star)) in enumerate(every.items()):
        left, upper = 34 + (place % COLUMNS) * room, top + (place // COLUMNS) * (PANEL + GAP)
        sheet.text(left, upper - 14, title, room - 30, weight="bold" if title == MEAN else "normal")
        axes = sheet.axes(left, upper, room - 34, PANEL)
        _panel(axes, panel, star, shown, shots)
        if place >= len(every) - COLUMNS:
            axes.set_xlabel("shots", size=SMALL)
    return sheet


def _legend(sheet: Sheet, shown: Mapping[str, Look]) -> None:
    for place, (name, look) in enumerate(shown.items()):
        left, middle = 8 + (place % 2) * (WIDE - 100) / 2, 11 + 14.0 * (place // 2)
        sheet.line([left, left + 24], [middle] * 2, **look.line)
        sheet.line([left + 12], [middle], **look.point)
        sheet.text(left + 30, middle - 6, name, (WIDE - 180) / 2)
    sheet.line([WIDE - 80], [11], color=INK, **STAR)
    sheet.text(WIDE - 70, 5, "zero-shot")


STAR: dict[str, Any] = {"marker": "*", "markersize": 9, "linestyle": "none", "markeredgewidth": 0}


def _panel(axes: Axes, panel: Panel, star: float, styles: Mapping[str, Look], shots: Sequence[float]) -> None:
    axes.tick_params(labelsize=SMALL)
    place = {shot: position + 1 for position, shot in enumerate(shots)}
    drawn = math.isfinite(star)
    if drawn:
        axes.plot([0], [star], color=INK, zorder=3, **STAR)
    for name, look in styles.items():
        line = panel.get(name)
        if line is None or not np.isfinite(line.means).any():
            continue
        drawn = True
        x = np.array([place[shot] for shot in line.shots])
        axes.plot(x, line.means, **{**look.point, **look.line, "linewidth": 1.3, "markersize": 4})
        wide = np.isfinite(line.half_widths) & np.isfinite(line.means)
        low, high = (line.means - line.half_widths)[wide], (line.means + line.half_widths)[wide]
        axes.vlines(x[wide], low, high, color=look.color, linewidth=1.2, alpha=0.8)
    if not drawn:
        say_empty(axes)
        return
    axes.set_xticks(range(len(shots) + 1), ["0", *(f"{shot:g}" for shot in shots)])
    axes.set_xlim(-0.4, len(shots) + 0.4)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _sentence(title: str, panel: Panel, star: float) -> str:
    parts = [f"zero-shot {number(star)}"] if math.isfinite(star) else []
    for name, line in panel.items():
        sound = np.flatnonzero(np.isfinite(line.means))
        values = [f"{number(line.means[i])} at {line.shots[i]:g}" for i in sound]
        parts += [f"{name} {', '.join(values)} shots"] if values else []
    return f"{title}: {'; '.join(parts) if parts else 'no values'}"


def _table(every: Mapping[str, tuple[Panel, float]], methods: Sequence[str]) -> Table:
    shots = sorted({shot for panel, _ in every.values() for line in panel.values() for shot in line.shots})
    rows = []
    for title, (panel, star) in every.items():
        for method in methods:
            line = panel.get(method)
            values = {} if line is None else {s: (m, w) for s, m, w in zip(*line, strict=True)}
            cells = [_cell(*values.get(shot, (math.nan, math.nan))) for shot in shots]
            rows.append((title, method, number(star), *cells))
    return Table(("set", "method", "zero-shot", *(f"{shot:g} shots" for shot in shots)), tuple(rows))


def _cell(mean: float, half_width: float) -> str:
    return number(mean) + (f" ± {number(half_width)}" if math.isfinite(half_width) else "")
