"""`dtrap data`: check or show the data sets under a folder, or download one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from ..console import CommandParser
from ..errors import DtrapError, nearest

if TYPE_CHECKING:
    from ..datamodules.inspection.own_images import TableColumns

ACTIONS = {
    "check": "list the sets under a folder and their faults",
    "show": "draw images of each class and the five views of one image into a PNG file",
    "fetch": "download a set if its license allows it, or print how to get it",
}

COLUMNS = {"path_column": "paths", "label_column": "labels", "split_column": "splits", "group": "groups"}


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
    options = data_parser().parse_args(arguments)
    if options.action == "show":
        return _show(options, console)
    root = Path(options.root).expanduser()
    if options.action == "fetch":
        from ..datamodules.acquisition.fetch import fetch

        return fetch(options.name, root, console)
    _check_root(root)
    from ..datamodules.inspection.check import check

    table = None if options.csv is None else Path(options.csv).expanduser()
    return check(
        root,
        console,
        only=options.set,
        decode=not options.quick,
        verbose=options.verbose,
        table=table,
        value_range=options.value_range,
        labels=None if options.table is None else Path(options.table).expanduser(),
        columns=_columns(options),
        template=options.template,
    )


def _check_root(root: Path) -> None:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DtrapError(f"{root} {what}. Give the folder that the data sets are in.")


def _show(options: argparse.Namespace, console: Console) -> int:
    """Draw the contact sheet of a set of the catalog or of a user's own images."""
    from ..datamodules.inspection.contact_sheet import show, show_own
    from ..datamodules.inspection.own_images import FOLDER, own_data

    *names, last = options.name
    root = Path(last).expanduser()
    if len(names) > 1:
        raise DtrapError(f"data show: {len(options.name)} names; expected [NAME] ROOT. See dtrap data show --help.")
    columns = _columns(options)
    table = None if options.table is None else Path(options.table).expanduser()
    if not names and not root.exists():
        from ..datamodules.acquisition.sources import SOURCES

        if last in SOURCES:
            raise DtrapError(f"data show: the folder of {last} is missing. Give it: dtrap data show {last} ROOT")
    _check_root(root)
    if not names or names[0] == FOLDER or table is not None:
        data = own_data(root, table, seed=options.seed, value_range=options.value_range, **columns)
        return show_own(data, Path(options.output or f"{data.title}.png").expanduser(), console)
    output = Path(options.output or f"{names[0].replace('/', '_')}.png").expanduser()
    return show(names[0], root, output, options.seed, console)


def data_parser() -> argparse.ArgumentParser:
    """Return the parser of `dtrap data`."""
    from ..datamodules.acquisition.sources import SOURCES

    parser = CommandParser(
        prog="dtrap data", description="Check or show the data sets under a folder, or download one."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
    check, show, fetch = (
        actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        for name, text in ACTIONS.items()
    )
    check.description = (
        f"{check.description} The exit status is 0, 1 if there is a fault or a number that differs from the published "
        "one, or 2 if no set was found."
    )
    check.epilog = show.epilog = fetch.epilog = f"The sets: {', '.join(SOURCES)}."
    check.add_argument("root", metavar="ROOT", help="folder of one or several sets")
    check.add_argument("--set", metavar="NAME", help="this set only: isic, coop/dtd, ..., or folder (class folders)")
    check.add_argument("--quick", action="store_true", help="do not decode the images")
    check.add_argument("--verbose", action="store_true", help="list every class and every fault")
    check.add_argument(
        "--value_range",
        nargs=2,
        type=float,
        metavar=("BLACK", "WHITE"),
        help="values of black and white of images with more than 8 bits (fit: --data.value_range)",
    )
    _add_table(check)
    check.add_argument(
        "--template",
        default="a photo of a {}.",
        help="class prompt of own images (default: %(default)s)",
    )
    check.add_argument("--csv", metavar="FILE", help="write all faults and notes into a table, one file a row")
    show.add_argument(
        "name",
        nargs="+",
        metavar="[NAME] ROOT",
        help="a set such as isic and its folder, or your own images",
    )
    _add_table(show)
    show.add_argument("--value_range", nargs=2, type=float, metavar=("BLACK", "WHITE"), help="see dtrap data check")
    fetch.add_argument("name", metavar="NAME", help="the set, such as isic or coop/dtd")
    show.add_argument("--output", metavar="FILE.png", help="the picture (default: NAME.png, with _ for /)")
    show.add_argument("--seed", type=_seed, default=1, help="seed of the chosen images and the views (default: 1)")
    fetch.add_argument("root", metavar="ROOT", help="folder for the set")
    return parser


def _add_table(parser: argparse.ArgumentParser) -> None:
    """Add the options of own images whose labels are in a table."""
    parser.add_argument("--table", metavar="FILE", help="own images with labels in this table instead of class folders")
    for name, what in COLUMNS.items():
        parser.add_argument(
            f"--{name}", metavar="COLUMN", help=f"column of the {what} in the table, if not found by itself"
        )


def _columns(options: argparse.Namespace) -> TableColumns:
    """Return the columns of a table that are given.

    Raises:
        DtrapError: They are given without a table.
    """
    given = {name: getattr(options, name) for name in COLUMNS if getattr(options, name) is not None}
    if given and options.table is None:
        raise DtrapError(f"--{next(iter(given))} names a column of a table. Give it: --table FILE")
    return cast("TableColumns", given)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)
