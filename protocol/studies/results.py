"""Read the results of a study: one frame of means, intervals and paired differences over its cells and arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..measured import measure_of, measured_values
from ..statistics import (
    Interval,
    binomial_interval,
    mean_interval,
    paired_difference,
    resampling_ratio,
    student_quantile,
)
from ..summary import tested_images
from .needed import episodes_needed
from .published import MEAN, PAPER_SETS, published_values, set_key
from .recorded import SETS, StudyCell, StudyPart, read_parts

if TYPE_CHECKING:
    from pandas import DataFrame

# Half widths in percentage points that `needed_1` and `needed_05` are for.
WANTED = {"needed_1": 1.0, "needed_05": 0.5}
NUMBERS = ["mean", "half_width", "low", "high", "difference", "difference_half_width", "published"]
NUMBERS += ["published_difference"]
COUNTS = ["count", "images", "pairs", *WANTED, "episodes", "asked", "diverged"]
FEWEST = ["fewest", "fewest_pairs"]
TEXTS = ["kind", "unit", "state", "failed"]


@dataclass(frozen=True)
class StudyResults:
    """What a study has measured so far.

    Attributes:
        folder: The study's folder.
        name: Name of the study.
        title: What it is.
        parts: Its parts.
        frame: One line for each part, cell, arm and measure, also where there is no result yet. `part`, `cell`,
            `folder`, `set`, a column for each axis, `arm` and `measure` say what it is. `mean`, `half_width`, `low`,
            `high`, `kind`, `count`, `images` are the interval; `difference`, `difference_half_width` and `pairs` the
            arm minus the compared one over their common episodes; `needed_1` and `needed_05` the episodes that would be
            needed for ± 1 and ± 0.5 points of that difference (missing with too few pairs); `published` and
            `published_difference` the paper's numbers; `episodes`, `asked`, `diverged`, `state` and `failed` how far
            the arm is.
        means: One line for each part, arm, measure and values of the other axes, with the same columns: the mean over
            the sets, each set alike, where every set has a result. `count` is the number of sets, `fewest` and
            `fewest_pairs` the least number of episodes and pairs that one of them has.
    """

    folder: Path
    name: str
    title: str
    parts: Sequence[StudyPart]
    frame: DataFrame
    means: DataFrame


def read_study(folder: Path, failed: Mapping[str, str] | None = None) -> StudyResults:
    """Read what a study has measured so far.

    Args:
        folder: The study's folder.
        failed: Why cells have failed, by part and name such as "ablation/isic_1shot"; the folder does not say it.

    Raises:
        DtrapError: The folder has no `study.json`, or a damaged one. A damaged cell is marked as failed.
    """
    import pandas as pd

    folder = Path(folder)
    name, title, parts = read_parts(folder, failed or {})
    by_part = {part.name: _lines(part) for part in parts}
    lines = [line for found in by_part.values() for line in found]
    means = [line for part in parts for line in _means(part, by_part[part.name])]
    axes = list(dict.fromkeys(axis for part in parts for axis in part.axes))
    columns = ["part", "cell", "folder", "set", *axes, "arm", "measure", *NUMBERS, *COUNTS, *TEXTS]
    types = dict.fromkeys(NUMBERS, float) | dict.fromkeys(COUNTS, "Int64")
    frame = pd.DataFrame(lines, columns=columns).astype(types)
    mean_frame = pd.DataFrame(means, columns=[*columns, *FEWEST]).astype(types | dict.fromkeys(FEWEST, "Int64"))
    return StudyResults(folder, name, title, parts, frame, mean_frame)


def axis_text(value: object) -> str:
    """Return the value of an axis as one text: an overlay by its name, "" for none."""
    if isinstance(value, list | tuple):
        return " ".join(axis_text(item) for item in value)
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        return PurePosixPath(value).stem
    return "" if value is None else str(value)


def _lines(part: StudyPart) -> list[dict[str, Any]]:
    """Return the lines of a part's cells."""
    lines = []
    for cell in part.cells:
        values = {arm: measured_values(cell.rows[arm]) for arm in part.arms}
        ratio = resampling_ratio(row for arm in part.arms for row in cell.rows[arm])
        for arm in part.arms:
            images = {row["episode"]: tested_images(row) for row in cell.rows[arm]}
            for measure in part.measures:
                own = values[arm].get(measure, {})
                base = values[part.compare].get(measure, {}) if part.compare not in (None, arm) else {}
                lines.append(
                    {
                        **_place(part, cell, arm, measure),
                        **_interval_columns(_interval(own, measure, images, ratio)),
                        **_difference_columns(own, base, measure, ratio),
                        **_published(part, cell, arm, measure, set_key(cell.axes.get(SETS))),
                        "episodes": len(cell.rows[arm]),
                        "asked": cell.asked,
                        "diverged": sum(bool(row.get("diverged")) for row in cell.rows[arm]),
                        "state": cell.state,
                        "failed": cell.failed,
                        "unit": cell.unit,
                    }
                )
    return lines


def _place(part: StudyPart, cell: StudyCell, arm: str, measure: str) -> dict[str, Any]:
    axes = {axis: axis_text(cell.axes.get(axis)) for axis in part.axes}
    what = {"part": part.name, "cell": cell.name, "folder": cell.folder, "set": cell.set_title}
    return what | axes | {"arm": arm, "measure": measure}


def _interval(
    values: Mapping[int, float], measure: str, images: Mapping[int, int | None], ratio: float | None
) -> Interval | None:
    """Return the mean over episodes; of a single accuracy, the exact interval over its test images."""
    if not values:
        return None
    known = [number for episode in values if (number := images.get(episode)) is not None]
    if len(values) == 1 and known and known[0] > 0 and measure in ("accuracy", "zero_shot_accuracy"):
        return binomial_interval(round(next(iter(values.values())) / 100 * known[0]), known[0])
    return replace(mean_interval(values.values(), ratio), images=sum(known) if len(known) == len(values) else None)


def _interval_columns(found: Interval | None) -> dict[str, Any]:
    empty = dict.fromkeys(("mean", "half_width", "low", "high", "kind", "images")) | {"count": 0}
    return empty if found is None else empty | asdict(found)


def _difference_columns(
    own: Mapping[int, float], base: Mapping[int, float], measure: str, ratio: float | None
) -> dict[str, Any]:
    common = sorted(own.keys() & base.keys())
    found = dict.fromkeys(("difference", "difference_half_width", *WANTED)) | {"pairs": len(common)}
    if not common:
        return found
    interval = paired_difference(own, base, ratio)
    found |= {"difference": interval.mean, "difference_half_width": interval.half_width}
    # More repeats of the same images do not make the interval as narrow as one likes.
    if measure_of(measure).difference_unit == "points" and ratio is None:
        differences = [own[episode] - base[episode] for episode in common]
        found |= {name: episodes_needed(differences, wanted) for name, wanted in WANTED.items()}
    return found


def _published(part: StudyPart, cell: StudyCell, arm: str, measure: str, key: str) -> dict[str, Any]:
    value, base = (
        published_values(part.published, name, measure, cell.axes).get(key) if name in cell.as_published else None
        for name in (arm, str(part.compare))
    )
    difference = None if value is None or base is None or arm == part.compare else round(value - base, 6)
    return {"published": value, "published_difference": difference}


def _means(part: StudyPart, lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for the mean over the sets of each arm, measure and values of the other axes."""
    others = [axis for axis in part.axes if axis != SETS]
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in (*others, "arm", "measure")), []).append(line)
    cells: dict[tuple[str, ...], list[StudyCell]] = {}
    for cell in part.cells:
        cells.setdefault(tuple(axis_text(cell.axes.get(axis)) for axis in others), []).append(cell)
    found = []
    for key, group in groups.items():
        if len(group) < 2:
            continue
        *values, arm, measure = key
        own = cells[tuple(values)]
        of_paper = {set_key(cell.axes.get(SETS)) for cell in own} == PAPER_SETS and all(
            cell.as_published == own[0].as_published for cell in own
        )
        place = {name: group[0][name] for name in ("part", *others, "arm", "measure")} | {"cell": "", "set": MEAN}
        numbers = _mean_columns(group, "mean", "half_width", "count") | {"count": len(group)}
        means = _mean_columns(group, "difference", "difference_half_width", "pairs")
        sums = {name: sum(line[name] for line in group) for name in ("pairs", "episodes", "diverged")}
        sums |= {"fewest": min(line["count"] for line in group), "fewest_pairs": min(line["pairs"] for line in group)}
        asked = [line["asked"] for line in group]
        found.append(
            place
            | numbers
            | means
            | sums
            | (_published(part, own[0], arm, measure, MEAN) if of_paper else {})
            | {"asked": None if None in asked else sum(asked), "unit": group[0]["unit"]}
        )
    return found


def _mean_columns(lines: Sequence[Mapping[str, Any]], mean: str, half_width: str, count: str) -> dict[str, Any]:
    """Return the mean of the sets' means with its interval: independent sets, Student's t after Welch-Satterthwaite.

    The interval says how well these sets are measured, not how much another choice of sets would change the mean.
    """
    if any(line[mean] is None for line in lines):
        return {mean: None, half_width: None}
    value = sum(line[mean] for line in lines) / len(lines)
    if any(line[half_width] is None for line in lines):
        return {mean: value, half_width: None}
    errors = [(line[half_width] / student_quantile(line[count] - 1), line[count] - 1) for line in lines]
    variance = sum(error**2 for error, _ in errors)
    if variance == 0:
        return {mean: value, half_width: 0.0}
    degrees = variance**2 / sum(error**4 / number for error, number in errors)
    return {mean: value, half_width: student_quantile(degrees) * math.sqrt(variance) / len(lines)}
