"""`dtrap dashboard`: build a workspace of W&B for the runs of a project."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ..console import CommandParser, say
from ..files import write_atomically


def dashboard_parser() -> argparse.ArgumentParser:
    """Return the parser of `dtrap dashboard`."""
    parser = CommandParser(
        prog="dtrap dashboard",
        description="Build a workspace of W&B: panels for accuracies, settings, gap measures, losses, classes and "
        "figures of the runs that --config loggers/wandb.yaml has logged to a project.",
        allow_abbrev=False,
    )
    parser.add_argument("--entity", required=True, metavar="NAME", help="your user name or team at W&B")
    parser.add_argument("--project", default="dtrap", metavar="NAME", help="the project of the runs (default: dtrap)")
    parser.add_argument("--name", default="dtrap", metavar="NAME", help="name of the workspace (default: dtrap)")
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME",
        help="a compared method such as baseline, whose paired difference gets a panel; may be repeated",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the workspace into a file, - for the screen, instead of sending it"
    )
    return parser


def dashboard(arguments: list[str], console: Console) -> int:
    """Run `dtrap dashboard`; see `dtrap dashboard --help`.

    Raises:
        DtrapError: An option is unknown, wandb-workspaces is missing, or W&B cannot be used.
    """
    options = dashboard_parser().parse_args(arguments)
    from ..protocol.wandb_workspace import build_workspace, save_workspace, workspace_json

    workspace = build_workspace(options.entity, options.project, options.name, options.method)
    if options.json == "-":
        print(workspace_json(workspace), end="")  # not through the console, which wraps
    elif options.json is not None:
        path = Path(options.json).expanduser()
        write_atomically(path, workspace_json(workspace), "or name another file with --json.")
        say(console, f"Written: {path}")
    else:
        say(console, f"Workspace: {save_workspace(workspace)}")
    return 0
