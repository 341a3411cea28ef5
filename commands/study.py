"""`dtrap study`: run a study, many runs from one small YAML file."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..console import CommandParser, say
from ..errors import DtrapError, expected_one_of
from ..protocol.studies.cells import Cell, cells_of
from ..protocol.studies.file import Study, find_study, read_study, shipped_studies
from ..protocol.studies.folder import StudyFolder
from ..protocol.studies.plan import made_of, read_plan, write_plan
from ..protocol.studies.plan_table import print_plan
from ..signals import STOP

if TYPE_CHECKING:
    from ..protocol.studies.resolve import ResolvedCell

SECTIONS = ("--data.", "--model.", "--trainer.", "--stage_switch.", "--protocol.", "--config")


def study(arguments: list[str], console: Console) -> int:
    """Run `dtrap study`; see `dtrap study --help`.

    Returns:
        0, 1 if a cell failed, or 130 after Ctrl-C.

    Raises:
        DtrapError: An option, the study file or a config is not as expected.
    """
    with STOP.ending_at_once():  # nothing is written yet
        options, words = _parse(arguments)
        if options.data_root is not None and not Path(options.data_root).expanduser().is_dir():
            raise DtrapError(f"--data-root is {options.data_root}, which is not a folder. Give the folder of the sets.")
        found = read_study(find_study(options.file))
        folder = StudyFolder(Path(options.folder or Path("runs") / f"study_{found.name}").expanduser())
        cells = cells_of(found, words, options.episodes)
        chosen = _chosen(found, cells, options.only)
        folder.check(found)
        if options.plan:
            _plan(found, cells, chosen, folder, options.data_root, console)
            return 0
        from ..protocol.launchers import check_one_process
        from ..protocol.studies.run import StudyRun
        from ..protocol.workers.options import check_ray

        resolved = _resolve(cells, options.data_root)
        workers = any(each.arms[0].method.values["protocol"]["workers"] is not None for each in resolved)
        check_ray() if workers else check_one_process("study")
        run = StudyRun(found, resolved, [each for each in resolved if each.cell in chosen], folder, console)
    outcome = run.run()
    _show(folder, {cell.part for cell in chosen}, outcome.failed, console)
    if outcome.interrupted:
        say(console, f"Interrupted. Resume with: {shlex.join(['dtrap', 'study', *arguments])}")
        return 130
    for title, reason in outcome.failed.items():
        print(f"dtrap: {title} failed: {reason}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _resolve(cells: Sequence[Cell], data_root: str | None, *, anywhere: bool = False) -> list[ResolvedCell]:
    from . import prepare_torch

    prepare_torch()
    from ..protocol.studies.resolve import Resolver
    from .study_parsing import StudyParser, options_set

    resolver = Resolver(StudyParser(data_root, anywhere=anywhere), options_set)
    return [resolver.resolve(cell) for cell in cells]


def _show(folder: StudyFolder, parts: Container[str], failed: dict[str, str], console: Console) -> None:
    """Print the tables of what some parts of the study have measured."""
    from ..protocol.studies.results import read_study as read_results
    from ..protocol.studies.table import print_study

    results = read_results(folder.path, failed)
    print_study(replace(results, parts=[part for part in results.parts if part.name in parts]), console)


def _plan(
    found: Study,
    cells: Sequence[Cell],
    chosen: Sequence[Cell],
    folder: StudyFolder,
    data_root: str | None,
    console: Console,
) -> None:
    """Print the plan; make and store it if something has changed since it was stored."""
    digest = made_of(found, cells, data_root)
    plan = read_plan(folder, digest)
    if plan is None:
        from ..protocol.studies.planning import make_plan

        plan = make_plan(digest, _resolve(cells, data_root, anywhere=True), folder)
    else:
        plan.count(folder)
    write_plan(folder, plan)
    print_plan(plan, {cell.title for cell in chosen}, console)


def study_parser() -> argparse.ArgumentParser:
    """Return the parser of `dtrap study`."""
    parser = CommandParser(
        prog="dtrap study",
        description="Run a study: every combination of data sets, settings and methods that a small YAML file names. "
        "The same command again runs what is missing.",
        epilog=f"Shipped studies: {', '.join(shipped_studies())}. "
        "Options of dtrap fit, such as --trainer.accelerator gpu, hold for all cells. The exit status is 1 if a "
        "cell failed.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="a study file, or a shipped study such as ablation")
    parser.add_argument("--data-root", metavar="FOLDER", help="folder under which each data set has its own")
    parser.add_argument("--plan", action="store_true", help="show the cells and the expected time; run nothing")
    parser.add_argument("--folder", metavar="FOLDER", help="where the results go (default: runs/study_NAME)")
    parser.add_argument("--episodes", type=_count, metavar="N", help="episodes of every cell, instead of the file's")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a part, or a cell as PART/CELL or CELL; may be repeated"
    )
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the command's own options, and those of `dtrap fit` for all cells."""
    own: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if not word.startswith(SECTIONS):
            own.append(word)
            continue
        others.append(word)
        if "=" not in word and (value := next(rest, None)) is not None:
            others.append(value)
    return study_parser().parse_args(own), others


def _chosen(found: Study, cells: Sequence[Cell], only: list[str] | None) -> list[Cell]:
    if only is None:
        return list(cells)
    for name in only:
        if not any(name in (cell.part, cell.name, cell.title) for cell in cells):
            known = [part.name for part in found.parts] if len(found.parts) > 1 else [cell.name for cell in cells]
            raise DtrapError(f"--only is '{name}'; {expected_one_of(name, known[:20])}")
    return [cell for cell in cells if any(name in (cell.part, cell.name, cell.title) for name in only)]
