"""Curves of loss and accuracy while image and text features are moved along the gap, as Liang et al. (2022) draw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .chart import Chart, Table
from .drawing import INK, NARROW, PAPER, Sheet, looks, say_empty, styled
from .words import Numbers, counted, number, numbers, sentences, unique

HEIGHT = 130.0
MOST_CURVES = 8


class Curve(NamedTuple):
    """A curve in the order of its shifts, and where its ends are."""

    shifts: Numbers
    distance: Numbers
    loss: Numbers
    accuracy: Numbers

    @property
    def start(self) -> int | None:
        """Place of the shift 0; None if it is not in the curve."""
        found = np.flatnonzero((np.abs(self.shifts) < 1e-9) & np.isfinite(self.loss))
        return int(found[0]) if len(found) else None

    @property
    def least(self) -> int | None:
        """Place of the least loss."""
        return int(np.nanargmin(self.loss)) if np.isfinite(self.loss).any() else None


@styled
def gap_shift_curves(curves: Mapping[str, Mapping[str, Any]], *, order: Sequence[str] | None = None) -> Chart:
    """Draw cross-entropy and accuracy over the signed distance of the means of image and text features.

    Args:
        curves: For each method `shifts`, `distance`, `loss`, and where known `accuracy` (fractions, as
            `dtrap.metrics.gap_shift_curve` gives them) and `episodes`, the number of episodes that the curve is a mean
            of.
        order: All methods of the page, for the same colors in all charts.
    """
    found = dict(zip(unique(curves), map(_curve, curves.values()), strict=True))
    styles = dict(zip(found, looks(curves, order).values(), strict=True))
    shown = dict(list(found.items())[:MOST_CURVES])
    rated = any(np.isfinite(curve.accuracy).any() for curve in shown.values())
    sheet = Sheet(NARROW, (2 if rated else 1) * (HEIGHT + 12) + 40 + 14 * len(shown))
    top = sheet.legend({name: styles[name] for name in shown}, {n: _drop(c) for n, c in shown.items()}) + 10
    panels = [("loss", top)] + ([("accuracy", top + HEIGHT + 14)] if rated else [])
    for measure, place in panels:
        axes = sheet.axes(40, place, NARROW - 50, HEIGHT)
        axes.set_ylabel("cross-entropy (nats)" if measure == "loss" else "accuracy (%)")
        _draw(axes, shown, styles, measure)
        if (measure, place) == panels[-1]:
            axes.set_xlabel("signed distance of the means of images and texts")
        else:
            axes.tick_params(labelbottom=False)
    alt = sentences(
        "Cross-entropy and accuracy over the signed distance between the mean image and the mean text feature"
        if rated
        else "Cross-entropy over the signed distance between the mean image and the mean text feature",
        *(_sentence(name, curve) for name, curve in found.items()),
    )
    counts = {curve["episodes"] for curve in curves.values() if curve.get("episodes") is not None}
    note = sentences(
        "Features are moved along the line between their means (Liang et al. 2022)",
        "Ring: not moved. Filled marker: least loss. Left of 0 the means have passed each other",
        "" if len(counts) != 1 else f"Means over {counted(next(iter(counts)), 'episode')}",
        "The numbers are those of the mean curve, with one shift for all episodes; in the tables each episode has its "
        "own best one, which gains more"
        if max(counts, default=1) > 1
        else "",
        f"The first {MOST_CURVES} of {len(found)} curves are drawn" if len(found) > len(shown) else "",
    )
    columns = ("method", "loss(0)", "least loss", "loss(0) − least loss", "shift of least loss", "accuracy (%) at 0")
    table = Table(columns, tuple((name, *_numbers(curve)) for name, curve in found.items()))
    return Chart("Gap shift", sheet.svg(alt), alt, note, table)


def _curve(given: Mapping[str, Any]) -> Curve:
    loss = np.ravel(numbers(_list(given.get("loss"))))
    parts = [np.ravel(numbers(_list(given.get(key)))) for key in ("shifts", "distance", "accuracy")]
    shifts, distance, accuracy = (part if len(part) == len(loss) else np.full(len(loss), np.nan) for part in parts)
    turn = np.argsort(shifts, kind="stable")
    return Curve(shifts[turn], distance[turn], loss[turn], 100 * accuracy[turn])


def _list(given: Any) -> Any:
    return [] if given is None else given


def _draw(axes: Any, shown: Mapping[str, Curve], styles: Mapping[str, Any], measure: str) -> None:
    drawn = False
    for name, curve in shown.items():
        heights, look = getattr(curve, measure), styles[name]
        if not np.isfinite(heights * curve.distance).any():
            continue
        drawn = True
        axes.plot(curve.distance, heights, **look.line)
        for place, filled in ((curve.start, False), (curve.least, True)):
            if place is not None:
                face = look.color if filled else PAPER
                style = {"marker": look.marker if filled else "o", "markersize": 7, "linestyle": "none"}
                axes.plot([curve.distance[place]], [heights[place]], color=look.color, markerfacecolor=face, **style)
    if not drawn:
        say_empty(axes)
        return
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))


def _values(curve: Curve) -> tuple[float, float, float, float]:
    nan = float("nan")
    start, least = curve.start, curve.least
    at_start = nan if start is None else float(curve.loss[start])
    at_least = nan if least is None else float(curve.loss[least])
    shift = nan if least is None else float(curve.shifts[least])
    return at_start, at_least, shift, nan if start is None else float(curve.accuracy[start])


def _drop(curve: Curve) -> str:
    start, least, *_ = _values(curve)
    return f"loss(0) − least loss {number(start - least, 3)}"


def _numbers(curve: Curve) -> tuple[str, ...]:
    start, least, shift, accuracy = _values(curve)
    drop, where = number(start - least, 3), number(shift, 3, sign=True)
    return number(start, 3), number(least, 3), drop, where, number(accuracy)


def _sentence(name: str, curve: Curve) -> str:
    start, least, drop, shift, accuracy = _numbers(curve)
    if curve.least is None:
        return f"{name}: no values"
    distance = "" if curve.start is None else f" at distance {number(curve.distance[curve.start], 3)}"
    rated = "" if accuracy == number(None) else f", accuracy there {accuracy} %"
    return (
        f"{name}: loss {start} where nothing is moved{distance}{rated}; least loss {least} at shift {shift}; "
        f"difference {drop}; {counted(len(curve.loss), 'shift')}"
    )
