"""`dtrap completion`: a script that completes commands, options and configs in a shell."""

from __future__ import annotations

import argparse
from functools import cache
from typing import Any

import shtab
from rich.console import Console

from ..configs import shipped_configs
from ..console import CommandParser
from . import COMMANDS, LONG_HELP
from .cite import cite_parser
from .dashboard import dashboard_parser
from .data import data_parser
from .doctor import doctor_parser
from .predict_options import OPTIONS as PREDICT_OPTIONS
from .study import study_parser

_CONFIGS = """
_dtrap_configs() {{
  compgen -W "{names}" -- "$1"
  compgen -f -- "$1"
}}
"""
_ZSH_CONFIGS = """
_dtrap_configs() {{
  compadd -- {names}
  _files
}}
"""
_CONFIG_NAMES = {"bash": "_dtrap_configs", "zsh": "_dtrap_configs"}
_PARSERS = {
    "cite": cite_parser,
    "dashboard": dashboard_parser,
    "data": data_parser,
    "doctor": doctor_parser,
    "study": study_parser,
}
_OWN_OPTIONS = {
    "test": ["adapter"],
    "predict": ["adapter", "output", *PREDICT_OPTIONS],
    "export": ["adapter", "output", "form", "push", "private"],
}


def completion(arguments: list[str], console: Console) -> int:
    """Print a completion script for bash, zsh or tcsh; see `dtrap completion --help`.

    Raises:
        DtrapError: The shell is unknown.
    """
    parser = CommandParser(
        prog="dtrap completion",
        description="Print a script that completes commands, options and configs in a shell. Bash reads it from "
        "~/.local/share/bash-completion/completions/dtrap: write it there once.",
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    shell = parser.parse_args(arguments).shell
    names = " ".join(shipped_configs())
    preamble = {"bash": _CONFIGS.format(names=names), "zsh": _ZSH_CONFIGS.format(names=names)}
    # Not through the console, which wraps.
    print(shtab.complete(_whole_parser(), shell, preamble=preamble))  # type: ignore[arg-type]
    return 0


def _whole_parser() -> argparse.ArgumentParser:
    """Return one parser with all commands, from which shtab reads names and help."""
    whole = argparse.ArgumentParser(prog="dtrap", add_help=False)
    commands = whole.add_subparsers(dest="command")
    for name, text in COMMANDS.items():
        if name in _PARSERS:
            commands.add_parser(name, help=text, parents=[_PARSERS[name]()], add_help=False)
            continue
        parser = commands.add_parser(name, help=text, allow_abbrev=False)
        if name in LONG_HELP:
            for option in _options(name):
                _complete(parser.add_argument(f"--{option}"), shtab.FILE)
        elif name == "configs":
            _complete(parser.add_argument("name", nargs="?"), _CONFIG_NAMES)
        elif name == "report":
            parser.add_argument("runs", nargs="*")
            _complete(parser.add_argument("--csv"), shtab.FILE)
        else:
            parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    for parser in commands.choices.values():
        for action in parser._actions:  # argparse has no public list
            if "--config" in action.option_strings or "--protocol.compare" in action.option_strings:
                _complete(action, _CONFIG_NAMES)
            if action.dest == "file":
                _complete(action, shtab.FILE)
            if action.dest == "runs":
                _complete(action, shtab.DIRECTORY)
    return whole


def _complete(action: argparse.Action, how: Any) -> None:
    action.complete = how  # type: ignore[attr-defined]


@cache
def _all_options() -> list[str]:
    """Return the options of `fit`, those of all data sets, tuners and backbones included."""
    from .parser import DtrapCLI
    from .parser_errors import option_names

    return option_names(DtrapCLI(["--config", "demo.yaml"], "fit").parser)


def _options(command: str) -> list[str]:
    return [*_OWN_OPTIONS.get(command, []), *_all_options()]
