"""`dtrap fit`: train and test every method on every episode that has no result yet."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from ..console import say
from ..errors import DtrapError
from ..lightning_modules.finite import DivergedError
from ..protocol.claims import in_words_of
from ..protocol.configuration import build_data
from ..protocol.launchers import check_one_process
from ..protocol.processes import asks_for_several, follows
from ..protocol.runner import ProtocolRun
from ..signals import STOP
from .parser import parse_methods


def fit(arguments: list[str], console: Console) -> int:
    """Run `dtrap fit`; see `dtrap fit --help`.

    Returns:
        0, 130 after Ctrl-C, or 1 if a method has no result because every episode of it diverged.

    Raises:
        DtrapError: A config, a value or a file is not as expected.
    """
    with STOP.ending_at_once():  # nothing is written yet
        methods = parse_methods(arguments)
        episode = methods[0].values["data"].get("init_args", {}).get("episode", 0)
        if episode:
            raise DtrapError(
                f"--data.episode is {episode}, but a run has the episodes 0 to --protocol.episodes - 1. Leave it out."
            )
        run = ProtocolRun(methods, build_data(methods[0].parsed), methods[0].settings, console)
        shared = run.data.streams and any(asks_for_several(method.values["trainer"]) for method in methods)
        if run.settings.workers is None and not shared:
            check_one_process("fit")
    STOP.last_words = f"Interrupted. Resume with: {_resuming(arguments, begun=run.settings.overwrite)}"
    try:
        run.run()
        if getattr(run.data, "repeats", None) and run.settings.save_adapters and not follows():
            say(console, f"A classifier of all images: {_of_all_images(arguments, run.folder.path)}")
    except KeyboardInterrupt:
        if not follows():
            say(console, f"Interrupted. Resume with: {_resuming(arguments, begun=run.begun)}")
        return 130
    except DivergedError as error:
        if not follows():
            print(f"dtrap: {error}", file=sys.stderr)
        return 1
    except DtrapError as error:
        told = in_words_of(run.data.unit, str(error))
        if told == str(error):
            raise
        raise DtrapError(told) from error
    return 0


def _of_all_images(arguments: list[str], folder: Path) -> str:
    """The same command without held-out images: each adapter of a repeat was trained without some."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--data.repeats", "--data.held_out", "--protocol.folder", "--protocol.overwrite"):
        parser.add_argument(option, nargs="?")
    words = parser.parse_known_args(arguments)[1]
    more = ["--data.repeats", "null", "--data.held_out", "null", "--protocol.folder", f"{folder}_all_images"]
    return shlex.join(["dtrap", "fit", *words, *more])


def _resuming(arguments: list[str], *, begun: bool) -> str:
    """The same command; without `--protocol.overwrite`, which would delete the new results, once it has been done."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--protocol.overwrite", nargs="?")
    words = parser.parse_known_args(arguments)[1] if begun else arguments
    return shlex.join(["dtrap", "fit", *words])
