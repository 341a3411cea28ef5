"""Console output: a parser that raises errors, lines and tables that are neither wrapped nor cut."""

from __future__ import annotations

import argparse
import io
from typing import NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .errors import DtrapError

TABLE_WIDTH = 10_000


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that raises a DtrapError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise a DtrapError with the message."""
        raise DtrapError(f"{self.prog.removeprefix('dtrap ')}: {message}. See {self.prog} --help.")


def say(console: Console, text: str) -> None:
    """Print a text without wrapping, markup and colors."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_table(table: Table, console: Console) -> None:
    """Print a table whose lines are neither cut nor wrapped at any width of the console, without colors."""
    wide = Console(file=io.StringIO(), width=TABLE_WIDTH, color_system=None)
    with wide.capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        console.print(Text(line.rstrip()), soft_wrap=True)
