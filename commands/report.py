"""`dtrap report`: the results of several runs or of a study in tables and on one page."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ..console import CommandParser, print_table, say
from ..files import write_atomically
from ..protocol.reports.report import Report, read_report
from ..protocol.reports.run_tables import BEFORE
from ..protocol.reports.tables import latex_document, markdown_text, to_markdown, to_rich
from ..protocol.studies.table import print_study

ANOTHER = "or name another file with --{}."


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within it, garbage is not looked for among the rows: there is none, and looking took 10 to 25 % of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_uncollected()
def report(arguments: list[str], console: Console) -> int:
    """Run `dtrap report`; see `dtrap report --help`.

    Raises:
        DtrapError: An option is unknown, no folder can be read, or a file cannot be written.
    """
    parser = CommandParser(
        prog="dtrap report",
        description="Show the results of several runs or of a study: accuracies in percent with their 95% intervals, "
        "the episodes and test images that they rest on, means over sets, and differences, paired where runs have the "
        "same episodes.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN|STUDY", help="folder of a run or study such as runs/my_run, or a study's file"
    )
    parser.add_argument("--html", metavar="FILE", help="write one page with tables, charts, pictures and commands")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--latex", metavar="FILE", help="write the tables for LaTeX with booktabs")
    parser.add_argument("--csv", metavar="FILE", help="write the numbers, not rounded")
    options = parser.parse_args(arguments)
    found = read_report(options.runs)
    for note in found.left_out:
        say(console, f"Left out: {note}")
    for study in found.studies:
        print_study(study, console)
    for number, table in enumerate(table for table in found.run_tables if not table.key.startswith(BEFORE)):
        print_table(to_rich(table, title=number > 0 or bool(found.studies)), console)
        for note in table.notes:
            say(console, note)
    for note in found.notes:
        say(console, note)
    for form in ("csv", "markdown", "latex", "html"):
        if getattr(options, form) is not None:
            path = Path(getattr(options, form)).expanduser()
            write_atomically(path, _content(found, form), ANOTHER.format(form))
            say(console, f"Written: {path}")
    return 0


def _content(found: Report, form: str) -> str:
    """Return the content of a file."""
    if form == "csv":
        return found.csv()
    if form == "markdown":
        return "\n".join([f"# {markdown_text(found.title)}\n", *(to_markdown(table) for table in found.tables)])
    if form == "latex":
        return latex_document(found.tables)
    from ..protocol.reports.page import page

    return page(found)
