"""`dtrap report`: the summaries of several runs in one table, a row per method and a column per set."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..console import CommandParser, print_table, say
from ..errors import DtrapError
from ..files import write_atomically
from ..parsing import read_json
from ..protocol.claims import MEASURES, counted
from ..protocol.run_folder import RunFolder
from ..protocol.statistics import BINOMIAL, STUDENT, TOO_FEW

if TYPE_CHECKING:
    from pandas import DataFrame

TITLE_WIDTH = 16
# A row of the table; methods of one name with another backbone or tuner are different ones.
METHOD = ["method", "backbone", "tuner"]
# What a mean rests on, and what is reported next to it.
NUMBERS = ["mean", "half_width", "low", "high"]
WEIGHTS = ["episodes", "episodes_asked", "diverged", "test_images", "classes", "untested_classes"]
COLUMNS = [*METHOD, "set", *NUMBERS, "interval", *MEASURES, *WEIGHTS, "run"]


def report(arguments: list[str], console: Console) -> int:
    """Run `dtrap report`; see `dtrap report --help`.

    Raises:
        DtrapError: An option is unknown, a folder has no valid summary, or two have the same method on the same task.
    """
    parser = CommandParser(
        prog="dtrap report",
        description="Show the results of several runs in one table: a row per method, a column per set, accuracies in "
        "percent with their 95% intervals, the episodes and test images that they rest on, and the mean over the sets.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, such as runs/my_run")
    parser.add_argument("--csv", metavar="FILE", help="write the same numbers, not rounded, to this file")
    options = parser.parse_args(arguments)
    lines = report_lines([Path(run).expanduser() for run in options.runs])
    print_table(_table(lines), console)
    for note in _notes(lines):
        say(console, note)
    if options.csv is not None:
        content = lines[COLUMNS].to_csv(index=False, lineterminator="\n")
        write_atomically(Path(options.csv).expanduser(), content, "or name another file with --csv.")
        say(console, f"Written: {options.csv}")
    return 0


def report_lines(folders: Sequence[Path]) -> DataFrame:
    """Read runs into a frame with a line for each method and set, and for each mean over the sets of a protocol.

    Args:
        folders: Run folders of `dtrap fit`.

    Returns:
        The columns are those of the CSV file and `complete`, whether every episode has a result. Accuracies and the
        half widths of their 95% intervals are in percent; NaN without a result, without held-out images or for one
        episode.

    Raises:
        DtrapError: A folder has no valid summary, or two have the same method on the same task.
    """
    import pandas as pd

    runs = pd.DataFrame([entry for folder in folders for entry in read_entries(folder)])
    numbers = [*NUMBERS, *MEASURES]
    runs[numbers] = runs[numbers].astype(float)
    for _, same in runs.groupby([*METHOD, "set"], sort=False):
        if len(same) > 1:
            first = same.iloc[0]
            raise DtrapError(
                f"{first['run']} and {same['run'].iloc[1]} both have '{first['method']}' on {first['set']}. Leave one "
                "out. Runs that differ in more than method, backbone and tuner need names (--protocol.method)."
            )
    lines = pd.DataFrame([*runs.to_dict("records"), *_means_over_sets(runs)], columns=runs.columns)
    lines[WEIGHTS] = lines[WEIGHTS].astype("Int64")
    order = pd.DataFrame({"method": lines.groupby(METHOD, sort=False).ngroup(), "set": lines["set"].factorize()[0]})
    return lines.loc[order.sort_values(["method", "set"], kind="stable").index]


def _means_over_sets(runs: DataFrame) -> list[dict[str, Any]]:
    """A line for each method and protocol with several sets, if the method has a mean for all of them."""
    sets = runs.groupby("protocol", sort=False)["set"].nunique()
    lines = []
    for (*method, protocol), own in runs.dropna(subset=["mean"]).groupby([*METHOD, "protocol"], sort=False):
        if len(own) == sets[protocol] > 1:
            title = f"mean of {len(own)}{f', {protocol}' if len(sets) > 1 else ''}"
            numbers = {"set": title, "mean": own["mean"].mean(), "complete": own["complete"].all()}
            summed = ("episodes", "episodes_asked", "diverged", "test_images")
            sums = {key: own[key].sum(skipna=False) for key in summed}
            lines.append(dict(zip(METHOD, method, strict=True)) | numbers | sums)
    return lines


def _table(lines: DataFrame) -> Table:
    """Every line's accuracy in percent; a row per method and a column per set or mean.

    Below the name of a set stand the episodes and test images of its accuracies, in the cells where they differ.
    """
    table = Table(box=box.SIMPLE)
    table.add_column("method", no_wrap=True)
    means = lines["run"].isna()
    titles = [*lines["set"][~means].unique(), *lines["set"][means].unique()]
    weights = {title: {_weight(line) for _, line in lines[lines["set"] == title].iterrows()} for title in titles}
    common = {title: next(iter(found)) if len(found) == 1 else "" for title, found in weights.items()}
    for title in titles:
        head = [*textwrap.wrap(title, TITLE_WIDTH), *([common[title]] if common[title] else [])]
        table.add_column(Text("\n".join(head)), justify="right", no_wrap=True)
    methods = lines[METHOD].drop_duplicates()
    for method, own in lines.groupby(METHOD, sort=False):
        cells = {line["set"]: _cell(line, common[line["set"]]) for _, line in own.iterrows()}
        table.add_row(
            *(Text(cell) for cell in [_label(tuple(map(str, method)), methods), *(cells.get(t, "") for t in titles)])
        )
    return table


def _weight(line: Any) -> str:
    """What an accuracy rests on, such as "400 × 75 images"; "" for none."""
    if not isinstance(line["run"], Path) or math.isnan(line["mean"]):
        return ""
    episodes, images = line["episodes"] - line["diverged"], line["test_images"]
    if not isinstance(images, int):  # of an earlier version
        return counted(episodes, "episode") if line["complete"] else ""
    if images % episodes == 0:
        return f"{episodes} × {images // episodes:,} images"
    return f"{counted(episodes, 'episode')}, {images:,} images"


def _notes(lines: DataFrame) -> list[str]:
    """What the intervals are, what means over sets are, and the classes that no accuracy covers."""
    import pandas as pd

    kinds = [kind for kind in (STUDENT, BINOMIAL) if (lines["interval"] == kind).any()]
    signs = {STUDENT: f"±: {STUDENT} over episodes or seeds", BINOMIAL: f"a to b: {BINOMIAL} over the test images"}
    notes = [f"95 % intervals. {'; '.join(signs[kind] for kind in kinds)}."] if kinds else []
    for _, line in lines[lines["run"].isna()].iterrows():
        rests = "" if pd.isna(line["test_images"]) else f", {counted(int(line['test_images']), 'test image')} in all"
        note = f"A mean over sets weighs each set alike and has no interval of its own{rests}."
        notes += [note] if note not in notes else []
    for _, line in lines[lines["untested_classes"].fillna(0) > 0].iterrows():
        notes.append(
            f"{line['run']}: {line['untested_classes']} of {line['classes']} classes of '{line['method']}' have no "
            "test image, so the accuracy does not cover them."
        )
    return notes


def _label(method: Sequence[str], methods: DataFrame) -> str:
    """Name of a row, with backbone or tuner if methods of this name have several."""
    namesakes = methods[methods["method"] == method[0]]
    differing = [
        value or f"unknown {part}"
        for part, value in zip(METHOD[1:], method[1:], strict=True)
        if namesakes[part].nunique() > 1
    ]
    return f"{method[0]} ({', '.join(differing)})" if differing else method[0]


def _cell(line: Any, weight: str) -> str:
    """Text of an accuracy with its interval; `weight` is what the head of the column says already."""
    mean = line["mean"]
    if not isinstance(line["run"], Path):  # a mean over sets
        return f"{mean:.1f}" if line["complete"] else f"{mean:.1f} (unfinished)"
    diverged, own = line["diverged"], _weight(line)
    notes = [] if line["complete"] else [f"{line['episodes']} of {line['episodes_asked']}"]
    notes += [f"{diverged} diverged"] if diverged else []
    if math.isnan(mean):
        return ", ".join(notes) or "no accuracy"
    notes += [own] if own not in ("", weight) else []
    if line["untested_classes"]:
        notes.append(f"{line['classes'] - line['untested_classes']} of {line['classes']} classes")
    notes += [f"{MEASURES[key]} {line[key]:.1f}" for key in MEASURES if not math.isnan(line[key])]
    return f"{_interval(line)} ({', '.join(notes)})" if notes else _interval(line)


def _interval(line: Any) -> str:
    mean, half_width, count = f"{line['mean']:.1f}", line["half_width"], line["episodes"] - line["diverged"]
    if line["interval"] == BINOMIAL:
        return f"{mean}, {line['low']:.1f} to {line['high']:.1f}"
    if math.isnan(half_width):
        return mean
    if half_width == 0:
        return f"{mean} in all {count}"
    return f"{mean} ± {half_width:.1f}{', too few' if count in TOO_FEW else ''}"


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """Read the summary of a run: a dictionary for each method, with the columns of the CSV, protocol and `complete`.

    Raises:
        DtrapError: The folder has no summary, or a damaged one.
    """
    path = RunFolder(folder).summary
    try:
        summary = read_json(path)
        asked = int(_number(summary["episodes"]))
        task = {"set": summary["description"], "protocol": str(summary.get("protocol", "")), "run": folder}
        entries = [
            task | {"method": name, "episodes_asked": asked} | _entry(method, asked)
            for name, method in summary["methods"].items()
        ]
        if not isinstance(summary["description"], str) or not entries:
            raise ValueError("it has no description or no method")
    except (FileNotFoundError, NotADirectoryError):
        what = f"has no {path.name}" if folder.is_dir() else "is not a folder"
        raise DtrapError(
            f"{folder} {what}. Expected the folder of a run of dtrap fit; it holds {path.name} after the run has ended "
            "or was interrupted."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise DtrapError(
            f"{path}: not a summary of dtrap fit ({reason}). Start that run again with the same command: its results "
            "are kept and the summary is rewritten."
        ) from error
    return entries


def _entry(method: dict[str, Any], asked: int) -> dict[str, Any]:
    episodes = int(_number(method["episodes"]))
    accuracy = method["accuracy"] or {"mean": None, "half_width": None}
    found = {key: _optional(accuracy.get(key)) for key in NUMBERS} | {"mean": _optional(accuracy["mean"])}
    mean, half_width = found["mean"], found["half_width"]
    if found["low"] is None and mean is not None and half_width:  # a summary of an earlier version
        found |= {"low": mean - half_width, "high": mean + half_width}
    images, classes = _optional(method.get("test_images")), _optional(method.get("classes"))
    return {
        "backbone": str(method.get("backbone", "")),
        "tuner": str(method.get("tuner", "")),
        **found,
        "interval": accuracy.get("kind") or (STUDENT if found["half_width"] else ""),
        **{key: _optional((method.get(key) or {}).get("mean")) for key in MEASURES},
        "episodes": episodes,
        "complete": episodes >= asked,
        "diverged": len(method.get("diverged") or []),
        "test_images": None if images is None else int(images),
        "classes": None if classes is None else int(classes),
        "untested_classes": len(method.get("untested_classes") or []),
    }


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"found {value!r} instead of a number")
    return value
