"""Console output: a parser that raises errors, lines and tables that are neither wrapped nor cut."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable
from typing import Any, NoReturn

from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from .errors import DtrapError, nearest, visible

TABLE_WIDTH = 10_000


class SafeConsole(Console):
    """A console that shows the control characters escaped of whatever is printed on it."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Yield the parts of a line or table; the console's own control codes stay."""
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=visible(part.text, keep="\n"))


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that raises a DtrapError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise a DtrapError with the message."""
        raise DtrapError(f"{self.prog.removeprefix('dtrap ')}: {message}. See {self.prog} --help.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the words; raise a DtrapError for an unknown one, with the option that is nearest to it."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            # Private attribute of argparse: the only list of a parser's options.
            near = nearest(unknown[0], self._option_string_actions)
            name = self.prog.removeprefix("dtrap ")
            raise DtrapError(f"{name}: unknown option '{unknown[0]}'.{near} See {self.prog} --help.")
        return options, unknown


def say(console: Console, text: str) -> None:
    """Print one line without wrapping, markup and colors; control characters are shown escaped."""
    console.print(Text(visible(text)), soft_wrap=True)


def say_on_terminal(console: Console, text: str) -> None:
    """Print one line where somebody waits for it; nothing goes into a file or a pipe."""
    if console.is_terminal:
        say(console, text)


def print_table(table: Table, console: Console) -> None:
    """Print a table whose lines are neither cut nor wrapped at any width of the console, without colors.

    Control characters are shown escaped.
    """
    wide = Console(file=io.StringIO(), width=TABLE_WIDTH, color_system=None)
    with wide.capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        say(console, line.rstrip())
