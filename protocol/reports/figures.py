"""The charts of a report: which numbers of the runs go into which chart, and what would give a missing one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..measured import measure_of
from ..run_folder import Row
from .charts import (
    accuracy_per_episode,
    confusion_matrix,
    coop_panels,
    difference_distribution,
    gap_shift_curves,
    heat_map,
    loss_curves,
    measure_panels,
    per_class_accuracy,
)
from .merging import Comparison, Entry, Task
from .numbers import differences, interval_of
from .own_images import are_own, class_tables

if TYPE_CHECKING:
    from pandas import DataFrame

    from ..studies.recorded import StudyPart
    from ..studies.results import StudyResults
    from .charts import Chart
    from .tables import TextTable

# A chart takes up to 0.1 s to draw, and a reader does not look at more of one kind.
MOST_TASKS, FEW_TASKS = 4, 2
MOST_LABELS = 8
MOST_MATRICES = 4  # the slowest ones
MOST_MEASURES, MEASURES_TOGETHER = 24, 6
MONITOR = "--config monitors/alignment.yaml"
PUBLISHED_WEIGHTS = ("0.1", "3.0")  # lambda and beta, as an axis writes them
TERMS = ("total", "L_vlm", "L_ad", "L_ra")


@dataclass
class Section:
    """A part of the page.

    Attributes:
        key: Short name for links.
        title: Its heading.
        notes: Sentences below the heading.
        tables: Tables.
        charts: Charts.
        pictures: Pictures.
        missing: What would give what the section has not; "" if it has something.
    """

    key: str
    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[TextTable] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    missing: str = ""


def chart_sections(comparison: Comparison, studies: Sequence[StudyResults]) -> list[Section]:
    """Return the sections of charts in the order of the page."""
    labels = comparison.labels()
    order = list(labels.values())
    tested = any(entry.values.get("accuracy") for task in comparison.tasks for entry in task.entries)
    return [
        _per_task(
            comparison,
            "accuracy",
            "Accuracy" if are_own(comparison) else "Accuracy per episode",
            lambda task: _accuracy(task, labels, order),
            "One value of each method: see the table of results."
            if tested
            else "No run has held-out images, so there is no accuracy.",
        ),
        _difference_section(comparison, labels),
        _measure_section(comparison, labels, order),
        _per_task(
            comparison,
            "gap-shift",
            "Gap shift: is there a better place for the images?",
            lambda task: _gap_shift(task, labels, order),
            f"No row has gap-shift curves. {MONITOR} of dtrap fit keeps them.",
        ),
        _per_task(
            comparison,
            "losses",
            "Losses",
            lambda task: _losses(task, labels, order),
            "No row has the terms of the loss; runs of an earlier version have none. Run them again.",
        ),
        _per_task(
            comparison,
            "classes",
            "Classes",
            lambda task: [*_classes(task, labels, order), *_confusions(task, labels, comparison)],
            "No row has accuracies per class: the runs have no held-out images.",
        ),
        *_study_sections(studies, order),
    ]


def _per_task(
    comparison: Comparison, key: str, title: str, draw: Callable[[Task], Iterable[Chart]], missing: str
) -> Section:
    """Return a section with the charts of the first tasks that have any."""
    section = Section(key, title)
    shown, most = 0, _most_tasks(comparison)
    for task in comparison.tasks:
        if shown == most:
            break
        charts = [_named(chart, task, comparison) for chart in draw(task)]
        shown += bool(charts)
        section.charts += charts
    if not section.charts:
        section.missing = missing
    elif len(comparison.tasks) > shown == most:
        section.notes.append(
            f"{most} of {len(comparison.tasks)} tasks are drawn; dtrap report RUN --html FILE draws those of one run."
        )
    if key == "classes":
        section.tables += class_tables(comparison, comparison.labels())
    return section


def _most_tasks(comparison: Comparison) -> int:
    return MOST_TASKS if len(comparison.tasks) <= MOST_TASKS else FEW_TASKS


def _named(chart: Chart, task: Task, comparison: Comparison) -> Chart:
    return replace(chart, title=f"{task.title}: {chart.title}") if len(comparison.tasks) > 1 else chart


def _accuracy(task: Task, labels: Mapping[Any, str], order: Sequence[str]) -> Iterator[Chart]:
    values = {labels[entry.key]: entry.values.get("accuracy", {}) for entry in task.entries}
    if any(len(own) > 1 for own in values.values()):
        series = {name: (list(own), list(own.values())) for name, own in values.items()}
        ratio = next((entry.resampled for entry in task.entries if entry.resampled is not None), None)
        yield accuracy_per_episode(series, unit=task.unit, order=order, resampled=ratio)


def _difference_section(comparison: Comparison, labels: Mapping[Any, str]) -> Section:
    own = are_own(comparison)
    section = Section("differences", "Paired differences" if own else "Paired differences, episode by episode")
    found: dict[str, list[float]] = {}
    ratios: dict[str, float | None] = {}
    several = len(comparison.tasks) > 1
    for difference in differences(comparison):
        ours, theirs = (entry.values.get("accuracy", {}) for entry in (difference.first, difference.other))
        common = sorted(ours.keys() & theirs.keys()) if difference.paired else []
        if len(common) > 1:
            name = f"{labels[difference.first.key]} minus {labels[difference.other.key]}"
            name = f"{difference.other.task.title}: {name}" if several else name
            found[name] = [ours[n] - theirs[n] for n in common]
            ratios[name] = difference.first.resampled
    if not found:
        section.missing = (
            f"No two methods have {'several common tasks' if own else 'common episodes'}. --protocol.compare "
            "methods/baseline.yaml of dtrap fit runs another "
            "method on the same ones."
        )
        return section
    names = list(found)
    shown = {name: found[name] for name in names[:MOST_LABELS]}
    section.charts.append(difference_distribution(shown, order=names, resampled=ratios))
    if len(names) > MOST_LABELS:
        section.notes.append(
            f"The first {MOST_LABELS} of {len(names)} differences are drawn; the table has all of them."
        )
    return section


def _measure_section(comparison: Comparison, labels: Mapping[Any, str], order: Sequence[str]) -> Section:
    def draw(task: Task) -> Iterator[Chart]:
        names = dict.fromkeys(name for entry in task.entries for name in entry.values)
        wanted = [
            name for name in names if "@" not in name and not name.startswith("zero_shot_") and name != "accuracy"
        ]
        if wanted:
            shown = wanted[:MOST_MEASURES]
            for start in range(0, len(shown), MEASURES_TOGETHER):
                part = shown[start : start + MEASURES_TOGETHER]
                count = f" {start + 1} to {start + len(part)} of {len(wanted)}" if len(part) < len(wanted) else ""
                yield measure_panels(
                    {
                        measure_of(name).title: {labels[entry.key]: interval_of(entry, name) for entry in task.entries}
                        for name in part
                    },
                    better={measure_of(name).title: measure_of(name).better for name in part},
                    digits={measure_of(name).title: measure_of(name).digits for name in part},
                    order=order,
                    title=f"Measures{count}",
                    unit=task.unit,
                )

    missing = f"Rows of an earlier version have no cross-entropy. {MONITOR} of dtrap fit measures gaps and alignment."
    return _per_task(comparison, "measures", "What accuracy hides: further measures", draw, missing)


def _gap_shift(task: Task, labels: Mapping[Any, str], order: Sequence[str]) -> Iterator[Chart]:
    curves: dict[str, dict[str, Any]] = {}
    for entry in task.entries:
        found = [curve for row in entry.sound if (curve := _curve(row)) is not None]
        if found:
            same = [curve for curve in found if curve["shifts"] == found[0]["shifts"]]
            keys = [key for key in ("distance", "loss", "accuracy") if all(key in curve for curve in same)]
            means = {key: np.mean([curve[key] for curve in same], axis=0).tolist() for key in keys}
            curves[labels[entry.key]] = {"shifts": found[0]["shifts"], **means, "episodes": len(same)}
    if curves:
        yield gap_shift_curves(curves, order=order)


def _curve(row: Row) -> dict[str, list[float]] | None:
    """Return the curve at the end of a row's training, if it is whole."""
    for entry in reversed(row.get("alignment") or []):
        curve = entry.get("curve")
        if entry.get("moment") == "end" and isinstance(curve, Mapping) and curve.get("shifts"):
            keys = [key for key in ("shifts", "distance", "loss", "accuracy") if curve.get(key)]
            lists: dict[str, list[float]] = {key: curve[key] for key in keys}
            sound = all(_is_numbers(values, len(curve["shifts"])) for values in lists.values())
            return lists if sound and {"distance", "loss"} <= lists.keys() else None
    return None


def _losses(task: Task, labels: Mapping[Any, str], order: Sequence[str]) -> Iterator[Chart]:
    found: dict[str, dict[str, Any]] = {}
    counts = set()
    for entry in task.entries:
        terms = [row["terms"] for row in entry.sound if row.get("terms") and _is_terms(row["terms"])]
        same = [one for one in terms if one["step"] == terms[0]["step"]]
        if same:
            means = {key: _mean([one[key] for one in same if key in one]) for key in TERMS if key in same[0]}
            found[labels[entry.key]] = {"step": same[0]["step"], **means, "stage": same[0].get("stage")}
            counts.add(len(same))
    if found:
        yield loss_curves(found, order=order, episodes=counts.pop() if len(counts) == 1 else None, unit=task.unit)


def _mean(lists: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Mean over episodes; None where a term is not active in one of them."""
    values = np.array([[np.nan if value is None else value for value in one] for one in lists], dtype=float)
    return [None if np.isnan(value) else float(value) for value in values.mean(axis=0)]


def _is_terms(terms: Mapping[str, Any]) -> bool:
    steps = terms.get("step")
    if not isinstance(steps, list) or not steps or not _is_numbers(steps, len(steps)):
        return False
    stage = terms.get("stage")
    if stage is not None and not (isinstance(stage, list) and _is_numbers(stage, 2)):
        return False
    lists = [terms[key] for key in TERMS if key in terms]
    return all(
        isinstance(one, list)
        and len(one) == len(steps)
        and _is_numbers([value for value in one if value is not None], None)
        for one in lists
    )


def _is_numbers(values: Any, length: int | None) -> bool:
    return (
        isinstance(values, list)
        and (length is None or len(values) == length)
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    )


def _classes(task: Task, labels: Mapping[Any, str], order: Sequence[str]) -> Iterator[Chart]:
    by_method: dict[str, dict[str, dict[str, float]]] = {}
    for entry in task.entries:
        values: dict[str, list[float]] = {}
        for row in entry.sound:
            for name, value in (row.get("per_class") or {}).items():
                if value is not None:
                    values.setdefault(name, []).append(value)
        if values:
            by_method[labels[entry.key]] = {
                name: {"mean": sum(own) / len(own), "episodes": len(own)} for name, own in sorted(values.items())
            }
    if by_method:
        yield per_class_accuracy(by_method, order=order, unit=task.unit)


def _confusions(task: Task, labels: Mapping[Any, str], comparison: Comparison) -> Iterator[Chart]:
    most = max(1, MOST_MATRICES // len(comparison.tasks))
    for entry in task.entries[:most]:
        counts, names = confusion_of(entry)
        if len(names) > 1:
            more = len(task.entries) - most
            left_out = f" ({more} more methods not drawn)" if more > 0 else ""
            yield confusion_matrix(counts, names, title=f"Confusion of {labels[entry.key]}{left_out}")


def confusion_of(entry: Entry) -> tuple[Any, list[str]]:
    """Return the counts of all episodes [W, W] and the names of all their classes."""
    names = sorted({name for row in entry.sound if row.get("confusion") for name in row["classes"]})
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for row in entry.sound:
        if row.get("confusion"):
            places = [place[name] for name in row["classes"]]
            np.add.at(counts, np.ix_(places, places), np.asarray(row["confusion"], dtype=np.int64))
    return counts, names


def _study_sections(studies: Sequence[StudyResults], order: Sequence[str]) -> list[Section]:
    maps = Section("heat-map", "Sensitivity: lambda and beta")
    panels = Section("coop", "CoOp's panels: accuracy over shots")
    for study in studies:
        for part in study.parts:
            if part.figure == "heat_map":
                maps.charts += list(_heat_maps(study, part))
            elif part.figure == "coop":
                panels.charts += list(_coop(study, part))
    maps.missing = "" if maps.charts else "No study over two options is shown. dtrap study sensitivity.yaml runs it."
    panels.missing = "" if panels.charts else "No study over shots is shown. dtrap study coop11.yaml runs it."
    return [maps, panels]


def _heat_maps(study: StudyResults, part: StudyPart) -> Iterator[Chart]:
    grid = [axis for axis in part.axes if "." in axis and len(part.axes[axis]) > 1][:2]
    if len(grid) < 2:
        return
    across, down = grid
    own = study.frame[(study.frame["part"] == part.name) & (study.frame["measure"] == part.measures[0])]
    measure = measure_of(part.measures[0])
    for (title, arm), lines in _by_set_and_arm(part, own, grid):
        if lines["mean"].isna().all():
            continue
        xs, ys = (list(dict.fromkeys(lines[axis])) for axis in (across, down))
        cells = {(line[across], line[down]): line for line in lines.to_dict("records")}
        values, widths, counts = (
            [[_number(cells.get((x, y), {}).get(key)) for x in xs] for y in ys]
            for key in ("mean", "half_width", "count")
        )
        names = [axis.rpartition(".")[2] for axis in grid]
        of_paper = names == ["anti_visual_weight", "relation_weight"]
        unit = f" ({measure.unit})" if measure.unit else ""
        chart = heat_map(
            names[0], xs, names[1], ys, values, half_widths=widths, counts=counts,
            measure=f"{measure.title}{unit}", digits=measure.digits, published=PUBLISHED_WEIGHTS if of_paper else None,
        )  # fmt: skip
        yield replace(chart, title=f"{title}, {arm}: {chart.title}")


def _by_set_and_arm(part: StudyPart, frame: DataFrame, drawn: Sequence[str]) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield the lines of each set and arm; an arm at several values of an axis that is not drawn is called so."""
    others = [axis for axis, values in part.axes.items() if axis not in ("sets", *drawn) and len(values) > 1]
    for (title, arm, *values), lines in frame.groupby(["set", "arm", *others], sort=False):
        named = [f"{axis.rpartition('.')[2]} {value or 'default'}" for axis, value in zip(others, values, strict=True)]
        yield (str(title), ", ".join([str(arm), *named])), lines


def _coop(study: StudyResults, part: StudyPart) -> Iterator[Chart]:
    if "shots" not in part.axes:
        return
    own = study.frame[(study.frame["part"] == part.name) & (study.frame["measure"] == "accuracy")]
    panels: dict[str, dict[str, tuple[list[int], list[Any], list[Any]]]] = {}
    for (title, arm), lines in _by_set_and_arm(part, own, ["shots"]):
        by_shot = lines.assign(_shot=lines["shots"].astype(int)).sort_values("_shot").groupby("_shot", sort=True)
        first = [group.iloc[0] for _, group in by_shot]
        means = [_number(line["mean"]) for line in first]
        if any(mean is not None for mean in means):
            shots = [int(line["shots"]) for line in first]
            panels.setdefault(title, {})[arm] = shots, means, [_number(line["half_width"]) for line in first]
    if panels:
        stars = {title: _zero_shot(part, title) for title in panels}
        yield coop_panels(panels, stars, order=list(part.arms))


def _zero_shot(part: StudyPart, title: str) -> float | None:
    if len(part.axes.get("backbones", ())) > 1:  # each has its own
        return None
    rows = [row for cell in part.cells if cell.set_title == title for own in cell.rows.values() for row in own]
    values = [row["zero_shot_accuracy"] for row in rows if row.get("zero_shot_accuracy") is not None]
    return sum(values) / len(values) if values else None


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)
