"""What the commands share that read and print without training: their parser, and tables that are never cut."""

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
    """A parser that raises its complaint instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise a DtrapError of the message."""
        raise DtrapError(f"{self.prog.removeprefix('dtrap ')}: {message}. See {self.prog} --help.")


def say(console: Console, text: str) -> None:
    """Print a text as it is: not wrapped, without markup and colours."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_table(table: Table, console: Console) -> None:
    """Print a table whose lines are neither cut nor wrapped, whatever the width of the console, without colours."""
    wide = Console(file=io.StringIO(), width=TABLE_WIDTH, color_system=None)
    with wide.capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        console.print(Text(line.rstrip()), soft_wrap=True)
