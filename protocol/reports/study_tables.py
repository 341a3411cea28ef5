"""The tables of a study: for each measure the means and the paired differences, next to the published numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..claims import counted
from ..identity import name_part
from ..measured import Measure, measure_of, measured_values
from ..statistics import BINOMIAL, CORRECTED, STUDENT, TOO_FEW, paired_difference, resampling_ratio
from .tables import Cell, TextTable

if TYPE_CHECKING:
    from ..studies.recorded import StudyPart
    from ..studies.results import StudyResults

SETS = "sets"
NEEDED = "needed ±1 / ±0.5"
Line = Mapping[str, Any]  # a line of a study's frame, with None for what is missing
Key = tuple[str, ...]


def study_folder(name: str) -> Path | None:
    """Return the default folder of a study file, shipped or the user's own; None if there is no such folder."""
    folder = Path("runs", f"study_{name_part(Path(name).stem)}")
    return folder if folder.is_dir() else None


def study_tables(results: StudyResults) -> list[TextTable]:
    """Return the tables of all parts of a study."""
    found = []
    for part in results.parts:
        *others, last = part_tables(results, part)
        found += [*others, replace(last, notes=[*last.notes, *_part_notes(part)])]
    return found


def _part_notes(part: StudyPart) -> list[str]:
    """What the published numbers are, and the verdict on an open question."""
    from ..studies.published import PAPER, PUBLISHED
    from ..studies.verdicts import verdict_lines

    table = PUBLISHED.get(part.published or "")
    return [*([f"Published: {PAPER}, {table.title}. {table.note}"] if table else []), *verdict_lines(part)]


def part_tables(results: StudyResults, part: StudyPart) -> Iterator[TextTable]:
    """Yield for each measure a table of means and, if an arm is compared with, one of paired differences.

    A row is an arm at values of the axes, with the published numbers below it; a column is a set, the last the mean.
    """
    lines, means = (_records(frame[frame["part"] == part.name]) for frame in (results.frame, results.means))
    for name in part.measures:
        measure = measure_of(name)
        own, own_means = ([line for line in found if line["measure"] == name] for found in (lines, means))
        unit = {"%": "percent", "": ""}.get(measure.unit, measure.unit)
        title = f"{_title(part)}: {measure.title}{f' ({unit})' if unit else ''}"
        best = _best(part, name, measure)
        notes = ["Means with their 95 % intervals. [n]: number of episodes or seeds. " + _marks(best), *_states(own)]
        corrected = any(line["kind"] == CORRECTED for line in own)
        notes += [f"Intervals over repeats of held-out images: {CORRECTED}."] if corrected else []
        yield _table(part, own, own_means, measure, title, notes, best)
        if part.compare is not None and any(line["pairs"] for line in own) and not name.startswith("zero_shot_"):
            unit = f" ({measure.difference_unit})" if measure.difference_unit else ""
            title = f"{_title(part)}: {measure.title} minus {part.compare}, paired{unit}"
            yield _table(part, own, own_means, measure, title, _difference_notes(measure, corrected), skip=part.compare)


def _table(
    part: StudyPart,
    lines: Sequence[Line],
    means: Sequence[Line],
    measure: Measure,
    title: str,
    notes: Sequence[str],
    best: Mapping[str, str] | None = None,
    skip: str | None = None,
) -> TextTable:
    axes = [axis for axis, values in part.axes.items() if axis != SETS and len(values) > 1]
    columns = {
        title: [line for line in lines if line["set"] == title] for title in dict.fromkeys(ln["set"] for ln in lines)
    }
    columns |= {f"mean of {len(columns)} sets": list(means)} if means else {}
    found = [{_key(line, axes): line for line in own} for own in columns.values()]
    rows = []
    for key in dict.fromkeys(_key(line, axes) for line in lines if line["arm"] != skip):
        own = [of_column.get(key) for of_column in found]
        texts = [_difference(line, measure) if skip else _mean(line, measure) for line in own]
        marked = [line is not None and best is not None and best.get(line["cell"]) == key[-1] for line in own]
        rows.append([*map(Cell, key), *map(Cell, texts, marked)])
        column = "published_difference" if skip else "published"
        published = [None if line is None else line[column] for line in own]
        if any(value is not None for value in published):
            sign = "+" if skip else ""
            texts = ["" if value is None else f"{value:{sign}.{measure.digits + 1}f}" for value in published]
            rows.append([*(Cell("") for _ in axes), Cell(f"{key[-1]}, published"), *map(Cell, texts)])
        texts = [_needed(line) for line in own] if skip else []
        if any(texts):
            rows.append([*(Cell("") for _ in axes), Cell(f"{key[-1]}, {NEEDED}"), *map(Cell, texts)])
    kind = "difference" if skip else "mean"
    head = [*axes, "arm", *columns]
    return TextTable(
        title, head, rows, [note for note in notes if note], len(axes) + 1, f"{part.name}-{measure.title}-{kind}"
    )


def _records(frame: Any) -> list[Line]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _title(part: StudyPart) -> str:
    fixed = [f"{axis} {_text(values[0])}" for axis, values in part.axes.items() if axis != SETS and len(values) == 1]
    note = f" ({', '.join(fixed)})" if fixed else ""
    return f"{part.title or part.name}{note}"


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return "default" if value in (None, "") else str(value).rpartition("/")[2].removesuffix(".yaml")


def _key(line: Line, axes: Sequence[str]) -> Key:
    return (*(str(line[axis]) for axis in axes), str(line["arm"]))


def _mean(line: Line | None, measure: Measure) -> str:
    if line is None:
        return ""
    if line["mean"] is None:
        return line["state"] if line["set"] != "mean" and line["state"] != "finished" else ""
    value, digits = f"{line['mean']:.{measure.digits}f}", measure.digits
    if line["kind"] == BINOMIAL:
        return f"{value}, {line['low']:.{digits}f} to {line['high']:.{digits}f}"
    half_width = f" ± {line['half_width']:.{digits}f}" if line["half_width"] else ""
    if line["set"] == "mean":
        return f"{value}{half_width}{', too few' if line['fewest'] in TOO_FEW else ''}"
    return f"{value}{half_width} [{_count(line)}]"


def _count(line: Line) -> str:
    few = ", too few" if line["count"] in TOO_FEW else ""
    unfinished = line["asked"] is not None and line["count"] < line["asked"]
    return f"{line['count']} of {line['asked']}{few}" if unfinished else f"{line['count']}{few}"


def _difference(line: Line | None, measure: Measure) -> str:
    if line is None or line["difference"] is None:
        return ""
    digits = measure.difference_digits
    value = f"{line['difference']:+.{digits}f}"
    half_width = f" ± {line['difference_half_width']:.{digits}f}" if line["difference_half_width"] else ""
    few = ", too few" if line.get("fewest_pairs", line["pairs"]) in TOO_FEW else ""
    return f"{value}{half_width} [{counted(int(line['pairs']), 'pair')}{few}]"


def _needed(line: Line | None) -> str:
    """Episodes in all for intervals of ± 1 and ± 0.5 points, such as "53 / 205"."""
    if line is None or line["set"] == "mean" or line.get("needed_1") is None or line.get("needed_05") is None:
        return ""
    return f"{line['needed_1']:,} / {line['needed_05']:,}"


def _difference_notes(measure: Measure, corrected: bool) -> list[str]:
    kind = CORRECTED if corrected else STUDENT
    notes = [f"Means of the differences over common episodes with their 95 % intervals ({kind})."]
    if measure.difference_unit == "points":
        notes.append(f"{NEEDED}: episodes in all for such an interval, from the variance of the pairs so far.")
    return notes


def _best(part: StudyPart, name: str, measure: Measure) -> dict[str, str]:
    """The best arm of each cell, where each paired difference from the others has an interval that excludes 0."""
    found: dict[str, str] = {}
    if measure.better is None or name.startswith("zero_shot_"):
        return found
    sign = 1 if measure.better == "higher" else -1
    for cell in part.cells:
        values = {arm: measured_values(rows).get(name, {}) for arm, rows in cell.rows.items()}
        values = {arm: own for arm, own in values.items() if own}
        if len(values) < 2:
            continue
        best = max(values, key=lambda arm: sign * sum(values[arm].values()) / len(values[arm]))
        others = [own for arm, own in values.items() if arm != best]
        ratio = resampling_ratio(row for rows in cell.rows.values() for row in rows)
        if all(_is_above(values[best], own, sign, ratio) for own in others):
            found[cell.name] = best
    return found


def _is_above(first: Mapping[int, float], other: Mapping[int, float], sign: int, ratio: float | None) -> bool:
    if not first.keys() & other.keys():
        return False
    found = paired_difference(first, other, ratio)
    ends = (found.low, found.high)
    return None not in ends and not found.too_few and min(sign * end for end in ends if end is not None) > 0


def _marks(best: Mapping[str, str]) -> str:
    if best:
        return "Marked: better than each other arm by a paired difference whose interval excludes 0."
    return "No arm is marked as the best: an interval of a paired difference contains 0, or none exists."


def _states(lines: Sequence[Line]) -> list[str]:
    failed = {line["cell"]: line["failed"] for line in lines if line["failed"]}
    diverged = sum(line["diverged"] or 0 for line in lines)
    notes = [f"{cell} failed: {str(reason).splitlines()[0][:200]}" for cell, reason in list(failed.items())[:3]]
    notes += [f"{len(failed) - 3} more cells failed."] if len(failed) > 3 else []
    return notes + ([f"{counted(int(diverged), 'episode')} diverged and left out."] if diverged else [])
