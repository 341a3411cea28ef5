"""The terms of the loss over the training, with the end of the suppressed stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from .chart import Chart
from .drawing import GRAY, NARROW, SMALL, Look, Sheet, looks, say_empty, styled
from .words import Numbers, counted, number, numbers, sentences, unique

TERMS = {"total": "total", "L_vlm": "L_vlm", "L_ad": "L_ad (SVL)", "L_ra": "L_ra (RA)"}
PANEL, GAP = 100.0, 34.0
MOST_METHODS = 8


class Course(NamedTuple):
    """The terms of one method over its steps, and the first and last step of its stage."""

    steps: Numbers
    terms: dict[str, Numbers]
    stage: tuple[float, float] | None


@styled
def loss_curves(
    terms: Mapping[str, Mapping[str, Any]],
    *,
    order: Sequence[str] | None = None,
    episodes: int | None = None,
    unit: str = "episode",
) -> Chart:
    """Draw each term of the loss over the steps, one panel a term, on a log scale where it is positive.

    Args:
        terms: For each method `step`, `total`, `L_vlm`, `L_ad`, `L_ra` (None where a term is not active) and `stage`,
            the first step of the suppressed stage and the first one after it.
        order: All methods of the page, for the same colors in all charts.
        episodes: Number of episodes that the curves are means of.
        unit: What an episode is called.
    """
    found = dict(zip(unique(terms), map(_course, terms.values()), strict=True))
    styles = dict(zip(found, looks(terms, order).values(), strict=True))
    shown = dict(list(found.items())[:MOST_METHODS])
    names = [term for term in TERMS if any(np.isfinite(course.terms[term]).any() for course in shown.values())]
    panels = names or ["total"]
    rows = (len(panels) + 1) // 2
    sheet = Sheet(NARROW, rows * (PANEL + GAP) + 26 + 14 * len(shown))
    notes = {name: _note(course) for name, course in shown.items()}
    top = sheet.legend({name: styles[name] for name in shown}, notes, points=False) + 6
    width = (NARROW - 40 - 46 - 8) / 2
    for place, term in enumerate(panels):
        left, upper = 40 + (place % 2) * (width + 46), top + 14 + (place // 2) * (PANEL + GAP)
        sheet.text(left, upper - 13, TERMS[term])
        axes = sheet.axes(left, upper, width, PANEL)
        axes.tick_params(labelsize=SMALL)
        _draw(axes, shown, styles, term)
        if place >= len(panels) - 2:
            axes.set_xlabel("step", size=SMALL)
    alt = sentences(
        f"Loss over the training steps, one panel each for {', '.join(TERMS[term] for term in panels)}",
        *(_sentence(name, course) for name, course in found.items()),
    )
    note = sentences(
        "Shaded: the suppressed stage, where the terms L_ad and L_ra act; its end is the switch",
        "Log scale where all values are positive",
        "" if episodes is None else f"Means over {counted(episodes, unit)}",
        f"The first {MOST_METHODS} of {len(found)} methods are drawn" if len(found) > len(shown) else "",
    )
    return Chart("Loss", sheet.svg(alt), alt, note)


def _course(given: Mapping[str, Any]) -> Course:
    steps = np.ravel(numbers(_list(given.get("step"))))
    terms = {}
    for term in TERMS:
        values = np.ravel(numbers(_list(given.get(term))))
        terms[term] = values if len(values) == len(steps) else np.full(len(steps), np.nan)
    ends = np.ravel(numbers(_list(given.get("stage"))))
    sound = len(ends) == 2 and np.isfinite(ends).all() and ends[1] > ends[0]
    return Course(steps, terms, (float(ends[0]), float(ends[1])) if sound else None)


def _list(given: Any) -> Any:
    return [] if given is None else given


def _draw(axes: Axes, shown: Mapping[str, Course], styles: Mapping[str, Look], term: str) -> None:
    values = np.concatenate([np.empty(0), *(course.terms[term] for course in shown.values())])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        say_empty(axes)
        return
    stages = {course.stage: styles[name] for name, course in shown.items() if course.stage}
    for stage, look in stages.items():
        alone = len(stages) == 1
        if alone:
            axes.axvspan(*stage, color=GRAY, alpha=0.15, linewidth=0)
        axes.axvline(stage[1], color=GRAY if alone else look.color, linewidth=1, linestyle=(0, (2, 2)))
    for name, course in shown.items():
        look, heights = styles[name], course.terms[term]
        alone = np.isfinite(heights).sum() == 1
        axes.plot(course.steps, heights, **(look.point if alone else {**look.line, "linewidth": 1.4}))
    if values.min() > 0 and values.max() / values.min() > 3:
        axes.set_yscale("log")
        subs = (1.0,) if values.max() / values.min() > 30 else (1.0, 2.0, 5.0)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(_plain)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.margins(x=0.02)


def _plain(value: float, _: object) -> str:
    text = f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2g}"
    mantissa, _, power = text.partition("e")
    return (f"{mantissa}e{int(power)}" if power else text).replace("-", "−")


def _note(course: Course) -> str:
    total = course.terms["total"][np.isfinite(course.terms["total"])]
    switch = "" if course.stage is None else f", switch at step {course.stage[1]:g}"
    return f"final {number(total[-1], 3)}{switch}" if len(total) else "no values"


def _sentence(name: str, course: Course) -> str:
    parts = []
    for term, values in course.terms.items():
        sound = np.flatnonzero(np.isfinite(values))
        if len(sound):
            first, last = sound[0], sound[-1]
            ends = f"from {number(values[first], 3)} at step {course.steps[first]:g}"
            parts.append(f"{TERMS[term]} {ends} to {number(values[last], 3)} at step {course.steps[last]:g}")
    stage = "no suppressed stage" if course.stage is None else "suppressed from step {:g} to {:g}".format(*course.stage)
    return f"{name}: {'; '.join([*parts, stage]) if parts else 'no values'}"
