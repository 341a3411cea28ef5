"""`dtrap report`: the summaries of several runs in one table, a row per method and a column per set."""

from __future__ import annotations

import json
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
from ..protocol.run_folder import RunFolder

if TYPE_CHECKING:
    from pandas import DataFrame

TITLE_WIDTH = 16
# A row of the table; methods of one name with another backbone or tuner are different ones.
METHOD = ["method", "backbone", "tuner"]
COLUMNS = [*METHOD, "set", "mean", "half_width", "episodes", "episodes_asked", "run"]


def report(arguments: list[str], console: Console) -> int:
    """Run `dtrap report`; see `dtrap report --help`.

    Raises:
        DtrapError: An option is unknown, a folder has no valid summary, or two have the same method on the same task.
    """
    parser = CommandParser(
        prog="dtrap report",
        description="Show the results of several runs in one table: a row per method, a column per set, accuracies in "
        "percent with the 95% interval over episodes or seeds, and the mean over the sets.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, such as runs/my_run")
    parser.add_argument("--csv", metavar="FILE", help="write the same numbers, not rounded, to this file")
    options = parser.parse_args(arguments)
    lines = report_lines([Path(run).expanduser() for run in options.runs])
    print_table(_table(lines), console)
    if options.csv is not None:
        content = lines[COLUMNS].to_csv(index=False, lineterminator="\n")
        write_atomically(Path(options.csv).expanduser(), content.encode(), "or name another file with --csv.")
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
    runs[["mean", "half_width"]] = runs[["mean", "half_width"]].astype(float)
    for _, same in runs.groupby([*METHOD, "set"], sort=False):
        if len(same) > 1:
            first = same.iloc[0]
            raise DtrapError(
                f"{first['run']} and {same['run'].iloc[1]} both have '{first['method']}' on {first['set']}. Leave one "
                "out. Runs that differ in more than method, backbone and tuner need names (--protocol.method)."
            )
    lines = pd.DataFrame([*runs.to_dict("records"), *_means_over_sets(runs)], columns=runs.columns)
    lines[["episodes", "episodes_asked"]] = lines[["episodes", "episodes_asked"]].astype("Int64")
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
            lines.append(dict(zip(METHOD, method, strict=True)) | numbers)
    return lines


def _table(lines: DataFrame) -> Table:
    """Mean ± half width in percent of every line; a row per method and a column per set or mean."""
    table = Table(box=box.SIMPLE)
    table.add_column("method", no_wrap=True)
    means = lines["run"].isna()
    titles = [*lines["set"][~means].unique(), *lines["set"][means].unique()]
    for title in titles:
        table.add_column(Text("\n".join(textwrap.wrap(title, TITLE_WIDTH))), justify="right", no_wrap=True)
    methods = lines[METHOD].drop_duplicates()
    for method, own in lines.groupby(METHOD, sort=False):
        cells = {line["set"]: _cell(line) for _, line in own.iterrows()}
        table.add_row(
            *(Text(cell) for cell in [_label(tuple(map(str, method)), methods), *(cells.get(t, "") for t in titles)])
        )
    return table


def _label(method: Sequence[str], methods: DataFrame) -> str:
    """Name of a row, with backbone or tuner if methods of this name have several."""
    namesakes = methods[methods["method"] == method[0]]
    differing = [
        value or f"unknown {part}"
        for part, value in zip(METHOD[1:], method[1:], strict=True)
        if namesakes[part].nunique() > 1
    ]
    return f"{method[0]} ({', '.join(differing)})" if differing else method[0]


def _cell(line: Any) -> str:
    mean, half_width = line["mean"], line["half_width"]
    if not isinstance(line["run"], Path):  # a mean over sets
        return f"{mean:.1f}" if line["complete"] else f"{mean:.1f} (unfinished)"
    counted = f"{line['episodes']} of {line['episodes_asked']}"
    if math.isnan(mean):
        return "no accuracy" if line["complete"] else counted
    percent = f"{mean:.1f}" if math.isnan(half_width) else f"{mean:.1f} ± {half_width:.1f}"
    return percent if line["complete"] else f"{percent} ({counted})"


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """Read the summary of a run: a dictionary for each method, with the columns of the CSV, protocol and `complete`.

    Raises:
        DtrapError: The folder has no summary, or a damaged one.
    """
    path = RunFolder(folder).summary
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
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
    return {
        "backbone": str(method.get("backbone", "")),
        "tuner": str(method.get("tuner", "")),
        "mean": None if accuracy["mean"] is None else _number(accuracy["mean"]),
        "half_width": None if accuracy["half_width"] is None else _number(accuracy["half_width"]),
        "episodes": episodes,
        "complete": episodes >= asked,
    }


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"found {value!r} instead of a number")
    return value
