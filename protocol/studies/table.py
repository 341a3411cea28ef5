"""Print the results of a study: for each measure the means and the paired differences, next to the published ones."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...console import print_table, say
from ..claims import counted
from ..measured import Measure, measure_of
from ..statistics import BINOMIAL, CORRECTED, TOO_FEW
from .needed import FEWEST_PAIRS
from .published import PAPER, PUBLISHED
from .recorded import FAILED, MISSING, SETS, UNFINISHED, StudyCell, StudyPart
from .results import StudyResults, axis_text
from .verdicts import verdict_lines

if TYPE_CHECKING:
    from pandas import DataFrame

WIDTH = 100
TITLE_WIDTH = 16
NAMED = 5
DEFAULT = "default"
NEEDED = "needed ±1 / ±0.5"
AXIS_TITLES = {"backbones": "backbone", "tuners": "tuner", "shots": "shots", "seeds": "seed"}

Line = Mapping[str, Any]  # a line of a frame, with None for what is missing
TextOf = Callable[[Line, Measure], str]


class _Group(NamedTuple):
    """The lines of a column, how they are written, its head, and what all its cells rest on ("" if they differ)."""

    head: str
    lines: Sequence[Line]
    measure: Measure
    weight: str


class _Column(NamedTuple):
    """A column of a table as texts; the head may have several lines."""

    head: str
    cells: list[str]

    @property
    def width(self) -> int:
        return max(map(cell_len, [*self.head.split("\n"), *self.cells])) + 3  # with the space around it


def print_study(results: StudyResults, console: Console) -> None:
    """Print the tables of a study, at most 100 columns wide unless one column alone is wider."""
    for number, part in enumerate(results.parts):
        if number:
            say(console, "")
        for item in part_tables(results, part):
            if isinstance(item, Table):
                print_table(item, console)
            else:
                say(console, item)


def part_tables(results: StudyResults, part: StudyPart) -> Iterator[Table | str]:
    """Yield titles, tables and notes of one part."""
    lines, means = (_records(frame[frame["part"] == part.name]) for frame in (results.frame, results.means))
    yield f"{part.name}: {part.title}"
    fixed = [(axis, values[0]) for axis, values in part.axes.items() if axis != SETS and len(values) == 1]
    if fixed:
        yield ", ".join(f"{_axis_title(axis)} {axis_text(value) or DEFAULT}" for axis, value in fixed)
    measures = {name: measure_of(name) for name in part.measures}
    own = {name: [line for line in lines if line["measure"] == name] for name in measures}
    titles = {str(line["set"]) for line in lines}
    if len(titles) == 1:
        yield from _of_one_set(part, titles.pop(), own, measures)
    else:
        for name, measure in measures.items():
            yield from _of_one_measure(part, own[name], [line for line in means if line["measure"] == name], measure)
    for note in [*verdict_lines(part), *_notes(part, lines)]:
        yield from textwrap.wrap(note, WIDTH, break_long_words=False, break_on_hyphens=False)


def _records(frame: DataFrame) -> list[Line]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _of_one_set(
    part: StudyPart, title: str, lines: Mapping[str, Sequence[Line]], measures: Mapping[str, Measure]
) -> Iterator[Table | str]:
    """Yield the tables of a study of one set, whose columns are the measures."""
    if not any(line["episodes"] for own in lines.values() for line in own):
        return
    yield f"{title}: mean ± half of the 95 % interval"
    groups = [_group(_with_unit(each, each.unit), lines[name], each, "") for name, each in measures.items()]
    yield from _tables(part, groups)
    skip = part.compare or ""
    groups = [
        _group(_with_unit(each, each.difference_unit), lines[name], each, skip)
        for name, each in measures.items()
        if _is_paired(name, lines[name])
    ]
    if groups:
        yield f"{title}: minus {skip}, paired by episode"
        yield from _tables(part, groups, skip)


def _of_one_measure(
    part: StudyPart, lines: Sequence[Line], means: Sequence[Line], measure: Measure
) -> Iterator[Table | str]:
    """Yield the tables of one measure, whose columns are the sets."""
    if not any(line["episodes"] for line in lines):
        return
    by_set: defaultdict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_set[line["set"]].append(line)
    mean = [_Group(f"mean of\n{len(by_set)} sets", means, measure, "")] if means else []
    yield f"{_with_unit(measure, measure.unit)}: mean ± half of the 95 % interval"
    groups = [_group(title, own, measure, "") for title, own in by_set.items()]
    yield from _tables(part, [*groups, *mean])
    if part.compare is not None and _is_paired(lines[0]["measure"], lines):
        yield f"{_with_unit(measure, measure.difference_unit)}: minus {part.compare}, paired by episode"
        groups = [_group(title, own, measure, part.compare) for title, own in by_set.items()]
        yield from _tables(part, [*groups, *mean], part.compare)


def _is_paired(name: str, lines: Sequence[Line]) -> bool:
    # The model without the tuner is the same in all arms.
    return any(line["pairs"] for line in lines) and not name.startswith("zero_shot_")


def _with_unit(measure: Measure, unit: str) -> str:
    unit = {"%": "percent"}.get(unit, unit)
    return f"{measure.title}, {unit}" if unit else measure.title


def _tables(part: StudyPart, groups: Sequence[_Group], skip: str = "") -> Iterator[Table]:
    """Yield a table with a column for each group and rows of arms, as several where it is too wide.

    Args:
        part: The part.
        groups: The columns.
        skip: The arm that the others are compared with: the table is of paired differences; "" for one of means.
    """
    label = PUBLISHED[part.published].label if part.published in PUBLISHED else "published"
    values: dict[str, TextOf] = {"": _value, label: _published}
    differences: dict[str, TextOf] = {"": _difference, label: _published_difference, NEEDED: _needed}
    axes = [axis for axis, axis_values in part.axes.items() if axis != SETS and len(axis_values) > 1]
    found = [{_key(line, axes): line for line in group.lines} for group in groups]
    labels: list[tuple[str, ...]] = []
    texts: list[list[str]] = []
    before: tuple[str, ...] = ()
    for key in dict.fromkeys(key for lines in found for key in lines if key[-1] != skip):
        for kind, text in (differences if skip else values).items():
            row = [
                _cell(lines.get(key), group, text, skip, weighed=not kind)
                for lines, group in zip(found, groups, strict=True)
            ]
            if not kind or any(row):
                labels.append((*([""] * len(axes)), f"  {kind}") if kind else _changed(key, before))
                texts.append(row)
        before = key
    first = [_Column(head, [label[n] for label in labels]) for n, head in enumerate([*map(_axis_title, axes), "arm"])]
    yield from _cut(first, [_Column(group.head, [row[n] for row in texts]) for n, group in enumerate(groups)])


def _cell(line: Line | None, group: _Group, text: TextOf, skip: str, *, weighed: bool) -> str:
    if line is None:
        return ""
    cell, own = text(line, group.measure), _weight(line, paired=bool(skip))
    return f"{cell} ({own})" if weighed and cell and own and own != group.weight else cell


def _group(title: str, lines: Sequence[Line], measure: Measure, skip: str) -> _Group:
    """Return the group of a column; in its head stands what all its cells rest on, if that is the same."""
    weights = {_weight(line, paired=bool(skip)) for line in lines if line["arm"] != skip} - {""}
    common = weights.pop() if len(weights) == 1 else ""
    head = "\n".join([*textwrap.wrap(title, TITLE_WIDTH), *([common] if common else [])])
    return _Group(head, lines, measure, common)


def _weight(line: Line, *, paired: bool) -> str:
    """Return what a number rests on: "15 × 75" episodes and test images, "37 of 800", or "15 pairs"."""
    count, images = line["pairs"] if paired else line["count"], line.get("images")
    if not count or line["set"] == "mean":
        return ""
    if paired:
        return counted(count, "pair")
    if line["asked"] is not None and count < line["asked"]:
        return f"{count:,} of {line['asked']:,}"
    return f"{count:,} × {images // count:,}" if images and images % count == 0 else f"{count:,}"


def _key(line: Line, axes: Sequence[str]) -> tuple[str, ...]:
    return (*(line[axis] or DEFAULT for axis in axes), line["arm"])


def _changed(key: tuple[str, ...], before: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what stands in the row above already."""
    same = 0
    while before and same < len(key) - 1 and key[same] == before[same]:
        same += 1
    return (*([""] * same), *key[same:])


def _axis_title(axis: str) -> str:
    return AXIS_TITLES.get(axis, axis.rpartition(".")[2])


def _cut(first: Sequence[_Column], others: Iterable[_Column]) -> Iterator[Table]:
    """Yield tables that all begin with the first columns and have as many of the others as fit."""
    room = WIDTH - sum(column.width for column in first)
    chunk: list[_Column] = []
    for column in others:
        if chunk and sum(other.width for other in chunk) + column.width > room:
            yield _table(first, chunk)
            chunk = []
        chunk.append(column)
    yield _table(first, chunk)


def _table(first: Sequence[_Column], others: Sequence[_Column]) -> Table:
    table = Table(box=box.SIMPLE)
    for column in first:
        table.add_column(Text(column.head), no_wrap=True)
    for column in others:
        table.add_column(Text(column.head), justify="right", no_wrap=True)
    for row in zip(*(column.cells for column in (*first, *others)), strict=True):
        if any(row[len(first) :]):
            table.add_row(*map(Text, row))
    return table


def _value(line: Line, measure: Measure) -> str:
    mean, half_width, count = line["mean"], line["half_width"], line.get("fewest", line["count"])
    if mean is None:
        return {None: "", FAILED: "failed", MISSING: "not run"}.get(line["state"], "no value")
    value = f"{mean:.{measure.digits}f}"
    if line["kind"] == BINOMIAL:
        return f"{value}, {line['low']:.{measure.digits}f} to {line['high']:.{measure.digits}f}"
    return value if half_width is None else _pm(value, half_width, measure.digits, count)


def _pm(value: str, half_width: float, digits: int, count: int, *, several: str = "all") -> str:
    if half_width == 0:
        return f"{value} in {several}"
    return f"{value} ± {half_width:.{digits}f}{', too few' if count in TOO_FEW else ''}"


def _difference(line: Line, measure: Measure) -> str:
    mean, half_width = line["difference"], line["difference_half_width"]
    if mean is None:
        return ""
    if half_width == 0 and mean == 0:
        return "identical"
    value = f"{mean:+.{measure.difference_digits}f}"
    pairs = line.get("fewest_pairs", line["pairs"])
    return value if half_width is None else _pm(value, half_width, measure.difference_digits, pairs)


def _published(line: Line, measure: Measure) -> str:
    return "" if line["published"] is None else _shortest(line["published"], measure, "")


def _published_difference(line: Line, measure: Measure) -> str:
    return "" if line["published_difference"] is None else _shortest(line["published_difference"], measure, "+")


def _shortest(value: float, measure: Measure, sign: str) -> str:
    """Return a number with all the places that the paper gives."""
    return max(f"{value:{sign}.{measure.digits}f}", f"{value:{sign}g}", key=len)


def _needed(line: Line, measure: Measure) -> str:
    if measure.difference_unit != "points" or not line["pairs"] or line["cell"] == "":
        return ""
    if line["needed_1"] is None:
        return "" if line["difference_half_width"] == 0 or line["kind"] == CORRECTED else "too few"
    return f"{line['needed_1']:,} / {line['needed_05']:,}"


def _notes(part: StudyPart, lines: Sequence[Line]) -> Iterator[str]:
    """Yield what a reader of the tables has to know, and the cells without a result."""
    table = PUBLISHED.get(part.published or "")
    if table is not None and (not table.values or any(line["published"] is not None for line in lines)):
        yield f"{table.label}: {PAPER}; {table.title}. {table.note}"
    if any(line["kind"] == CORRECTED for line in lines):
        yield f"intervals over repeats of held-out images: {CORRECTED}"
    if any(line["needed_1"] is not None for line in lines):
        yield (
            "needed: episodes for a 95 % interval of ± 1 and ± 0.5 points of the difference, from the variance seen; "
            f"too few below {FEWEST_PAIRS} pairs."
        )
    left_out: dict[str, int] = {}
    for line in lines:
        if line["diverged"]:
            left_out[f"{line['cell']}, {line['arm']}"] = line["diverged"]
    if left_out:
        yield _named("diverged and left out", [f"{name} ({counted(n, 'episode')})" for name, n in left_out.items()])
    for state, title in ((MISSING, "not run yet"), (UNFINISHED, "unfinished")):
        cells = [cell for cell in part.cells if cell.state == state]
        if cells:
            yield _named(f"{title}: {len(cells)} of {counted(len(part.cells), 'cell')}", map(_progress, cells))
    for cell in part.cells:
        if cell.state == FAILED:
            yield f"failed: {cell.name}: {cell.failed.splitlines()[0]}"


def _progress(cell: StudyCell) -> str:
    done = min(len(rows) for rows in cell.rows.values())
    return f"{cell.name} ({done} of {cell.asked})" if any(cell.rows.values()) else cell.name


def _named(title: str, names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return f"{title}: {', '.join(shown[:NAMED])}{more}"
