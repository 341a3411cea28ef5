"""`dtrap fit`: train and test every method on every episode that has no result yet."""

from __future__ import annotations

import argparse
import shlex

from rich.console import Console

from ..console import say
from ..protocol.configuration import build_data
from ..protocol.runner import ProtocolRun
from ..signals import STOP
from .parser import parse_methods


def fit(arguments: list[str], console: Console) -> int:
    """Run `dtrap fit`; see `dtrap fit --help`.

    Returns:
        0, or 130 after Ctrl-C.

    Raises:
        DtrapError: A config, a value or a file is not as expected.
    """
    with STOP.ending_at_once():  # nothing is written yet
        methods = parse_methods(arguments)
        run = ProtocolRun(methods, build_data(methods[0].parsed), methods[0].settings, console)
    STOP.last_words = f"Interrupted. Resume with: {_resuming(arguments, begun=run.settings.overwrite)}"
    try:
        run.run()
    except KeyboardInterrupt:
        say(console, f"Interrupted. Resume with: {_resuming(arguments, begun=run.begun)}")
        return 130
    return 0


def _resuming(arguments: list[str], *, begun: bool) -> str:
    """The same command; without `--protocol.overwrite`, which would delete the new results, once it has been done."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--protocol.overwrite", nargs="?")
    words = parser.parse_known_args(arguments)[1] if begun else arguments
    return shlex.join(["dtrap", "fit", *words])
