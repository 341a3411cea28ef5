"""The `dtrap` command. Commands that need no torch start without importing it."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import suppress

from . import __version__
from .commands import COMMANDS, LONG_HELP
from .errors import DtrapError, expected_one_of, visible
from .signals import STOP

HELP = f"""usage: dtrap COMMAND [options]

Tune a vision-language model (CLIP, SigLIP2, PE-Core) on a few labeled images of a distant domain.

commands:
{chr(10).join(f"  {name:12}{text}" for name, text in COMMANDS.items())}

first steps:
  dtrap fit --config demo.yaml                              a demo without downloads, two minutes
  dtrap fit --config isic_5shot.yaml --data.root /path      the paper's setting on ISIC
  dtrap fit --config folder.yaml --data.root my_images      your own images, one folder per class
  dtrap data check /path                                    the data sets under a folder and their faults
  dtrap study ablation --data-root /path                    a table of the paper: sets, methods, intervals
  dtrap report runs/isic runs/eurosat --html report.html    several runs in one table and on one page
  dtrap fit --help                                          the options that people use, and where the others are

options:
  --help      show this text, or the options of a command
  --version   show the version
  --debug     after a command: show the Python traceback of an error
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its status.

    Args:
        arguments: Words after `dtrap`; those of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with STOP.handled(ends_process=True):
        status = _run(words)
    sys.exit(status)


def _run(words: list[str]) -> int:
    """Run the command and return its exit status: 128 + its number after a signal, 2 after a user's mistake."""
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    STOP.last_words = "Interrupted."
    if words[:1] in (["fit"], ["study"]):
        STOP.last_words += f" Resume with: {shlex.join(['dtrap', *words])}"
    try:
        status = _dispatch(words)
        if sys.stdout is not None:  # None if the shell closed it (>&-)
            sys.stdout.flush()
    except KeyboardInterrupt:
        _complain("Interrupted.")
        status = 130
    except BrokenPipeError:
        # The reader has closed the pipe (`dtrap configs | head`).
        status = 141
    except (DtrapError, OSError) as error:
        if debug:
            raise
        _complain(f"dtrap: {visible(str(error), keep=chr(10))}")
        status = 2
    except (Exception, SystemExit):
        # Lightning turns a KeyboardInterrupt into a SystemExit, an import that it ended into an ImportError, and a
        # worker process that the same signal ended raises a RuntimeError.
        if STOP.received is None:
            raise
        _complain("Interrupted.")
        status = 130
    _drop_unwritten()
    return status if STOP.received is None else 128 + STOP.received


def _complain(text: str) -> None:
    # Of several processes that share a run, process 0 says what all of them have to say.
    rank = os.environ.get("DTRAP_FOLLOWS")
    if rank is not None:
        text = "" if text == "Interrupted." else f"process {rank}: {text}"
    elif "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        text = ""
    with suppress(OSError):  # the terminal may be gone
        print(text, end="\n" if text else "", file=sys.stderr)


def _drop_unwritten() -> None:
    """Let nothing fail at Python's own flush when it exits: the reader or the terminal may be gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] in ("--version", "version"):
        print(f"dtrap {__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        raise DtrapError(f"unknown command '{command}'; {expected_one_of(command, COMMANDS)}")
    if command == "configs":
        return _list_configs(rest)
    from .commands import run

    # Help does not depend on other words, which may be incomplete. `data` has sub-commands, each with its help.
    asked = next((place for place, word in enumerate(rest) if word in ("-h", "--help")), None)
    if asked is not None and command != "data":
        topics = rest[asked + 1 : asked + 2]
        if command in LONG_HELP and topics != ["all"]:
            from .commands.help import help_page, help_topic

            print(help_topic(command, *topics) if topics else help_page(command), end="")
            return 0
        rest = ["--help"]

    return run(command, rest)


def _list_configs(rest: list[str]) -> int:
    from .commands.plug_ins import plug_in_lines
    from .configs import SWEEP, config_text, shipped_configs, title_of

    if rest and rest[0] not in ("-h", "--help"):
        print(config_text(rest[0]), end="")
        return 0
    names = [*shipped_configs(), SWEEP]
    width = max(map(len, names)) + 2
    for name in names:
        print(f"{name:{width}}{title_of(name)}")
    lines = plug_in_lines()
    if lines:
        print("", "installed plug-ins:", *(f"  {line}" for line in lines), sep="\n")
    return 0


if __name__ == "__main__":
    main()
