"""`dtrap data`: check or show the data sets under a folder, or download one."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ..console import CommandParser
from ..errors import DtrapError, nearest

ACTIONS = ("check", "show", "fetch")
NAME_HELP = "the set, such as isic or coop/dtd"


def data(arguments: list[str], console: Console) -> int:
    """Run `dtrap data check|show|fetch`; see `dtrap data --help`.

    Returns:
        Exit status: 0, or 1 if `check` found a fault.

    Raises:
        DtrapError: An option, a name or a folder is not as expected, or no data set was found.
    """
    if arguments and not arguments[0].startswith("-") and arguments[0] not in ACTIONS:
        raise DtrapError(
            f"'{arguments[0]}': expected dtrap data {'|'.join(ACTIONS)}.{nearest(arguments[0], ACTIONS)} "
            "See dtrap data --help."
        )
    try:
        options, unknown = _parser().parse_known_args(arguments)
    except SystemExit:  # --help, which argparse has printed
        return 0
    if unknown:
        near = nearest(unknown[0], ("--set", "--quick", "--verbose", "--output", "--seed"))
        raise DtrapError(f"data {options.action}: unknown option '{unknown[0]}'.{near} See dtrap data --help.")
    root = Path(options.root).expanduser()
    if options.action == "fetch":
        from ..datamodules.acquisition.fetch import fetch

        return fetch(options.name, root, console)
    _check_root(root)
    if options.action == "check":
        from ..datamodules.inspection.check import check

        return check(root, console, only=options.set, decode=not options.quick, verbose=options.verbose)
    from ..datamodules.inspection.contact_sheet import show

    output = Path(options.output or f"{options.name.replace('/', '_')}.png").expanduser()
    return show(options.name, root, output, options.seed, console)


def _check_root(root: Path) -> None:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DtrapError(f"{root} {what}. Give the folder that the data sets are in.")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="dtrap data", description="Check or show the data sets under a folder, or download one."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="check|show|fetch")

    text = "list the sets under a folder and their faults"
    details = "The exit status is 0, 1 if there is a fault, or 2 if no set was found."
    check = actions.add_parser("check", help=text, description=f"{text.capitalize()}. {details}", allow_abbrev=False)
    check.add_argument("root", metavar="ROOT", help="folder of one or several sets")
    check.add_argument("--set", metavar="NAME", help="this set only, such as isic or coop/dtd")
    check.add_argument("--quick", action="store_true", help="do not decode the images")
    check.add_argument("--verbose", action="store_true", help="list every class and every fault")

    text = "draw images of each class and the five views of one image into a PNG file"
    show = actions.add_parser("show", help=text, description=f"{text.capitalize()}.", allow_abbrev=False)
    show.add_argument("name", metavar="NAME", help=NAME_HELP)
    show.add_argument("root", metavar="ROOT", help="folder of the set, or its parent folder")
    show.add_argument("--output", metavar="FILE.png", help="the picture (default: NAME.png, with _ for /)")
    show.add_argument("--seed", type=_seed, default=1, help="seed of the chosen images and the views (default: 1)")

    text = "download a set if its license allows it, or print how to get it"
    fetch = actions.add_parser("fetch", help=text, description=f"{text.capitalize()}.", allow_abbrev=False)
    fetch.add_argument("name", metavar="NAME", help=NAME_HELP)
    fetch.add_argument("root", metavar="ROOT", help="folder for the set")
    return parser


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)
