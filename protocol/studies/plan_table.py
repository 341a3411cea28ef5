"""The plan of a study on the console."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...console import print_table, say
from ..claims import counted
from ..progress import duration
from .plan import Estimate, Plan, PlannedCell, estimate

MOST_LINES = 60
MOST_NOTES = 4


def print_plan(plan: Plan, chosen: Container[str], console: Console) -> None:
    """Print cells, what is done and missing, and the expected time of the chosen cells.

    Args:
        plan: The plan of all cells.
        chosen: Titles of the cells to show.
        console: Where to print.
    """
    estimates = estimate(plan)
    cells = [cell for cell in plan.cells if cell.title in chosen]
    table = Table("cell", "arms", "episodes", "rows done", "missing", "expected time", "from", box=box.SIMPLE)
    for cell in cells[:MOST_LINES]:
        table.add_row(*(Text(text) for text in _line(plan, cell, estimates[cell.title])))
    print_table(table, console)
    if len(cells) > MOST_LINES:
        say(console, f"and {len(cells) - MOST_LINES:,} more cells; --only NAME shows those of a part.")
    _print_sum(plan, cells, [estimates[cell.title] for cell in cells], console)
    changed = {title: lines for title, lines in plan.changed.items() if title in chosen}
    for title, lines in list(changed.items())[:MOST_NOTES]:
        say(console, f"{title} has results of another config, and will be refused: {lines}")
    if len(changed) > MOST_NOTES:
        say(console, f"and {len(changed) - MOST_NOTES:,} more cells with results of another config.")


def _line(plan: Plan, cell: PlannedCell, found: Estimate) -> list[str]:
    done = [plan.counts[cell.folder].done(arm, cell.episodes) for arm in cell.arms]
    own = cell.folder == cell.title or cell.folder == cell.title.partition("/")[2]
    rows = cell.episodes * len(cell.arms)
    same = "" if own else f"same run as {cell.folder}"
    time = "" if not found.missing else "unknown" if found.seconds is None else duration(found.seconds)
    source = ", ".join(filter(None, [same, found.source, f"{found.copied} copied" if found.copied else ""]))
    missing = f"{found.missing:,}" if own else ""
    return [cell.title, str(len(cell.arms)), f"{cell.episodes:,}", f"{sum(done):,} of {rows:,}", missing, time, source]


def _print_sum(plan: Plan, cells: list[PlannedCell], found: list[Estimate], console: Console) -> None:
    runs = {cell.folder: cell for cell in cells}
    rows = sum(cell.episodes * len(cell.arms) for cell in runs.values())
    done = sum(plan.counts[name].done(arm, cell.episodes) for name, cell in runs.items() for arm in cell.arms)
    same = f" ({counted(len(runs), 'run')}, since equal cells are run once)" if len(runs) < len(cells) else ""
    say(
        console,
        f"{counted(len(cells), 'cell')}{same}: {done:,} of {counted(rows, 'row')} done, {rows - done:,} missing.",
    )
    known = [each.seconds for each in found if each.missing and each.seconds is not None]
    unknown = sum(each.missing > 0 and each.seconds is None for each in found)
    if known:
        beside = f", and {counted(unknown, 'cell')} of unknown time" if unknown else ""
        say(console, f"Expected time: {duration(sum(known))}{beside}.")
    elif unknown:
        say(console, f"Expected time: unknown for {counted(unknown, 'cell')}.")
    reasons = Counter(plan.reasons.values())
    for reason, number in reasons.most_common(MOST_NOTES) if unknown else ():
        say(console, f"Not measured ({number}): {reason}")
