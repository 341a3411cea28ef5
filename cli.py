"""The `dtrap` command; what needs no torch answers without importing it."""

from __future__ import annotations

import os
import sys

from . import __version__
from .errors import DtrapError, nearest

COMMANDS = {
    "fit": "train and test on every episode; prints mean and 95% interval",
    "test": "test saved adapters again",
    "predict": "classify a folder of images with a saved adapter",
    "export": "write the tuned model for open_clip, transformers or peft alone",
    "data": "check or show the data sets under a folder, or fetch one",
    "report": "show the results of several runs in one table",
    "configs": "list the shipped configs, or print one",
}

HELP = f"""usage: dtrap COMMAND [options]

Tunes a vision-language model (CLIP, SigLIP2, PE-Core) on a few labelled images of a distant domain.

commands:
{chr(10).join(f"  {name:10}{text}" for name, text in COMMANDS.items())}

first steps:
  dtrap fit --config demo.yaml                              nothing to download, two minutes
  dtrap fit --config isic_5shot.yaml --data.root /path      the paper's setting
  dtrap fit --config folder.yaml --data.root my_images      your own images, one folder per class
  dtrap data check /path                                    what is there, and what is wrong with it
  dtrap report runs/isic runs/eurosat                       several runs in one table
  dtrap fit --help                                          all options

options:
  --help      this text; after a command, its options
  --version   the version
  --debug     after a command: show the Python traceback of an error
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its status.

    Args:
        arguments: Words after `dtrap`; those of the process where None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        status = _dispatch(words)
        if sys.stdout is not None:  # as with >&-
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except (DtrapError, OSError) as error:
        if debug:
            raise
        print(f"dtrap: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] in ("--version", "version"):
        print(f"dtrap {__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        raise DtrapError(f"'{command}' is no command.{nearest(command, COMMANDS)} Commands: {', '.join(COMMANDS)}.")
    if command == "configs":
        return _list_configs(rest)
    if command != "data" and ("-h" in rest or "--help" in rest):
        rest = [word for word in rest if word in ("-h", "--help")]
    from .commands import run

    return run(command, rest)


def _list_configs(rest: list[str]) -> int:
    from .configs import config_text, shipped_configs, title_of

    if rest and rest[0] not in ("-h", "--help"):
        print(config_text(rest[0]), end="")
        return 0
    names = shipped_configs()
    width = max(map(len, names)) + 2
    for name in names:
        print(f"{name:{width}}{title_of(name)}")
    return 0


if __name__ == "__main__":
    main()
