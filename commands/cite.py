"""`dtrap cite`: BibTeX of what runs used."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.text import Text

from ..console import CommandParser
from ..errors import visible
from ..protocol.citations import bibtex, used_by


def cite_parser() -> argparse.ArgumentParser:
    """Return the parser of `dtrap cite`."""
    parser = CommandParser(
        prog="dtrap cite",
        description="Print BibTeX of what runs used: the method, tuners, backbones and their weights, data sets and "
        "software. What has no reference here is said in a comment line.",
        epilog="To write a file: dtrap cite runs/my_run > references.bib",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN|STUDY|ADAPTER", help="folder of a run or of a study, or a saved adapter"
    )
    return parser


def cite(arguments: list[str], console: Console) -> int:
    """Run `dtrap cite`; see `dtrap cite --help`.

    Raises:
        DtrapError: An option is unknown, or a folder or file cannot be read.
    """
    options = cite_parser().parse_args(arguments)
    text = bibtex(used_by(options.runs))
    console.print(Text(visible(text, keep="\n")), soft_wrap=True, end="")
    return 0
