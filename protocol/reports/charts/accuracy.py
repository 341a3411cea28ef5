"""The accuracy of each episode, and the running mean with its 95% interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....lightning_modules.exact_interval import CONFIDENCE
from ...statistics import CORRECTED, STUDENT
from .chart import Chart, Table
from .drawing import NARROW, Look, Sheet, looks, say_empty, styled
from .words import Numbers, clean, counted, interval_of, mean_text, number, numbers, sentences, unique

MOST_POINTS = 400  # above, points are one embedded picture, which is smaller and faster to show
MOST_METHODS = 12
PLOT_HEIGHT = 170.0


@styled
def accuracy_per_episode(
    series: Mapping[str, tuple[Any, Any]],
    *,
    unit: str = "episode",
    order: Sequence[str] | None = None,
    resampled: float | None = None,
) -> Chart:
    """Draw the accuracy of each episode as a point, and the running mean with Student's 95% interval as a line.

    Args:
        series: For each method the numbers of its episodes and their accuracies in percent.
        unit: What an episode is called.
        order: All methods of the page, for the same colors in all charts.
        resampled: n_test/n_train of repeats of held-out images, whose interval is the corrected resampled one.
    """
    drawn = dict(zip(unique(series), (_sorted(*values) for values in series.values()), strict=True))
    styles = dict(zip(drawn, looks(series, order).values(), strict=True))
    means = {name: interval_of(values, resampled) for name, (_, values, _) in drawn.items()}
    texts = {name: mean_text(found, noun=unit) for name, found in means.items()}
    shown = dict(list(drawn.items())[:MOST_METHODS])
    sheet = Sheet(NARROW, PLOT_HEIGHT + 50 + 14 * len(shown))
    top = sheet.legend({name: styles[name] for name in shown}, texts) + 10
    axes = sheet.axes(40, top, NARROW - 50, PLOT_HEIGHT)
    for name, (episodes, values, _) in shown.items():
        if len(values):
            many = sum(len(numbers) for _, numbers, _ in shown.values()) > MOST_POINTS
            _draw(axes, episodes, values, styles[name], many, resampled)
    _scale(axes, [values for _, values, _ in shown.values()])
    axes.set_xlabel(unit)
    axes.set_ylabel("accuracy (%)")
    missing = sum(gone for _, _, gone in drawn.values())
    hidden = len(drawn) - len(shown)
    title, kind = f"Accuracy per {unit}", STUDENT if resampled is None else CORRECTED
    alt = sentences(
        f"Points: accuracy in percent of each {unit}. Lines: running mean with its 95 % interval",
        *(_sentence(name, values, texts[name]) for name, (_, values, _) in drawn.items()),
    )
    note = sentences(
        f"Points are {unit}s, the line is the mean of all {unit}s so far, the band its 95 % interval ({kind})",
        f"{counted(missing, 'value')} missing and left out" if missing else "",
        f"The first {MOST_METHODS} of {len(drawn)} methods are drawn" if hidden else "",
    )
    rows = tuple((name, texts[name], *_ends(values)) for name, (_, values, _) in drawn.items())
    table = Table(("method", "mean ± 95 % interval", "lowest", "highest"), rows)
    return Chart(title, sheet.svg(alt), alt, note, table)


def running_mean(values: Numbers, resampled: float | None = None) -> tuple[Numbers, Numbers]:
    """Return the mean of the first 1, 2, … n values and the half widths of Student's interval; the first is NaN.

    Those of repeats, where `resampled` is n_test/n_train, are of the corrected resampled interval.
    """
    from scipy.special import stdtrit  # the quantile alone: scipy.stats takes longer to import

    count = np.arange(1, len(values) + 1)
    shifted = values - values[:1]  # against cancellation in the squares
    mean = np.cumsum(shifted) / count
    squares = np.maximum(np.cumsum(shifted**2) - count * mean**2, 0)
    half_width = np.full(len(values), np.nan)
    freedom = count[1:] - 1
    half_width[1:] = stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(
        squares[1:] / freedom * (1 / count[1:] + (resampled or 0.0))
    )
    return mean + values[:1], half_width


def _sorted(episodes: Any, values: Any) -> tuple[Numbers, Numbers, int]:
    """Episodes in their order with their values, and the number of those without a value."""
    places, found = np.ravel(numbers(episodes)), np.ravel(numbers(values))
    if len(places) != len(found):
        raise ValueError(f"expected one value per episode, got {len(places)} episodes and {len(found)} values")
    sound = np.isfinite(places) & np.isfinite(found)
    places, found = places[sound], found[sound]
    turn = np.argsort(places, kind="stable")
    return places[turn], found[turn], int((~sound).sum())


def _draw(axes: Any, episodes: Numbers, values: Numbers, look: Look, rasterized: bool, ratio: float | None) -> None:
    size = 3.2 if len(values) <= 100 else 2.4
    alpha = 0.55 if len(values) <= 100 else 0.35
    axes.plot(episodes, values, **{**look.point, "markersize": size}, alpha=alpha, rasterized=rasterized, zorder=1.5)
    mean, half_width = running_mean(values, ratio)
    # as many places as the screen can show; the last is the mean of the legend
    kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), 120)).round().astype(int))
    axes.plot(episodes[kept], mean[kept], **look.line)
    kept = kept[kept > 0]
    low, high = mean[kept] - half_width[kept], mean[kept] + half_width[kept]
    axes.fill_between(episodes[kept], low, high, color=look.color, alpha=0.18, linewidth=0)


def _scale(axes: Any, values: Sequence[Numbers]) -> None:
    found = np.concatenate([np.empty(0), *values])
    if len(found) == 0:
        say_empty(axes)
        return
    low, high = found.min(), found.max()
    room = max(0.06 * (high - low), 2.0)
    axes.set_ylim(low - room, high + room)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _sentence(name: str, values: Numbers, text: str) -> str:
    if not len(values):
        return f"{name}: no value"
    low, high = _ends(values)
    return f"{clean(name)}: mean {text}, lowest {low}, highest {high}"


def _ends(values: Numbers) -> tuple[str, str]:
    return (number(values.min()), number(values.max())) if len(values) else (number(None),) * 2
