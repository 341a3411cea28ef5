"""The runs of a study: every cell is an ordinary run, equal ones are run once, and a failed one stops no other."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from ...console import say
from ...datamodules.few_shot import FewShotDataModule
from ...datamodules.index import DataNotFound
from ...errors import DtrapError, first_line
from ...parsing import read_json
from ...signals import STOP
from ..configuration import MethodConfig, build_data
from ..identity import changes, difference, identity
from ..method_names import effective_settings
from ..precision import FORMER, check_study, same_request, settle_precision
from ..rehearsal import Loaded, parts_key
from ..run_folder import Row, RunFolder
from ..runner import ProtocolRun
from .file import Study
from .folder import StudyFolder, count_rows
from .resolve import ResolvedCell, Sources, as_in_study, methods_of

if TYPE_CHECKING:
    from ..workers.pool import WorkerPool


@dataclass
class Outcome:
    """What became of the cells.

    Attributes:
        done: Titles of the cells that have all their rows.
        failed: Reason by the title of a cell.
        interrupted: Whether a signal has ended the study.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def describe_parts(study: Study, cells: Sequence[ResolvedCell], folders: dict[str, str]) -> list[dict[str, Any]]:
    """Return the parts of a study for its study.json.

    Args:
        study: The study.
        cells: All cells.
        folders: Folder of each cell by its title, relative to the study's.
    """
    described: list[dict[str, Any]] = []
    for part in study.parts:
        own = [
            {
                "name": found.cell.name,
                "folder": folders[found.cell.title],
                "axes": found.cell.axes,
                "set_title": found.title,
                "episodes": found.episodes,
                "unit": found.unit,
                "arms": [arm.name for arm in found.cell.arms],
                "as_published": found.cell.as_published,
            }
            for found in cells
            if found.cell.part == part.name
        ]
        described.append(
            {
                "name": part.name,
                "title": part.title,
                "axes": part.axes,
                "arms": [arm.name for arm in part.arms],
                "compare": part.compare,
                "measures": part.measures,
                "figure": part.figure,
                "verdict": part.verdict,
                "published": part.published,
                "cells": own,
            }
        )
    return described


def changed(folder: RunFolder, found: ResolvedCell) -> str:
    """Return how the config of a cell differs from that of the results in its folder; "" if it does not."""
    try:
        stored = read_json(folder.identity)["methods"]
        for arm in found.arms:
            lines = _differences(stored[arm.name], arm.values()) if arm.name in stored else []
            if lines:
                return f"'{arm.name}': {'; '.join(lines[:3])}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return ""


def _differences(stored: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """Differences of a stored identity from a config; what a run settles itself does not count."""
    now = identity(values)
    for side in (stored, now):
        side.pop("protocol", None)
    settled = stored.get("data", {}).get("init_args", {}).get("test_preprocessing")
    options = now.get("data", {}).get("init_args", {})
    if settled is not None and options.get("test_preprocessing", 0) is None:
        options["test_preprocessing"] = settled
    trainer, precision = now.setdefault("trainer", {}), stored.get("trainer", {}).get("precision")
    if same_request(precision, trainer.get("precision")):
        trainer["precision"] = precision
    return difference(stored, now)


class StudyRun:
    """Runs the cells of a study.

    Args:
        study: The study.
        cells: All its cells.
        chosen: Those to run.
        folder: The study's folder.
        console: Where progress is printed.
    """

    def __init__(
        self,
        study: Study,
        cells: Sequence[ResolvedCell],
        chosen: Sequence[ResolvedCell],
        folder: StudyFolder,
        console: Console,
    ) -> None:
        self.study, self.cells, self.chosen, self.folder = study, cells, chosen, folder
        self.console = console
        self.sources = Sources(cells)
        self.folders = self.sources.folders
        self._loaded: Loaded = {}
        self._pool: WorkerPool | None = None
        self._told = False
        self._former = False  # whether cells of an earlier version have decided what null stands for

    def run(self) -> Outcome:
        """Run what is missing; print each cell's name, and at the end the failed ones.

        Raises:
            DtrapError: The study's folder cannot be written to.
        """
        self.folder.write(self.study, describe_parts(self.study, self.cells, self.folders))
        outcome = Outcome()
        runs = self._runs()
        workers = ExitStack()
        missing = [group for group in runs if not self._is_settled(group)]
        if len(missing) < len(runs):
            say(self.console, f"{len(runs) - len(missing)} of {len(runs)} runs are finished.")
        if missing:
            self._check_precision(missing[0][0])
        with workers:
            return self._run_all(runs, missing, outcome, workers)

    def _run_all(
        self, runs: list[list[ResolvedCell]], missing: list[list[ResolvedCell]], outcome: Outcome, workers: ExitStack
    ) -> Outcome:
        for group in runs:
            reason = ""
            if group in missing:
                say(self.console, f"Run {missing.index(group) + 1} of {len(missing)}: {_titles(group)}")
                try:
                    STOP.check()
                    reason = self._run(group, workers)
                except KeyboardInterrupt:
                    outcome.interrupted = True
                    return outcome
            for found in group:
                if reason := reason or self._all_diverged(found):
                    outcome.failed[found.cell.title] = reason
                else:
                    outcome.done.append(found.cell.title)
        return outcome

    def _runs(self) -> list[list[ResolvedCell]]:
        """The chosen cells, those of one run together, and runs with the same backbone one after the other."""
        groups: dict[str, list[ResolvedCell]] = {}
        for found in self.chosen:
            groups.setdefault(self.folders[found.cell.title], []).append(found)
        order = {backbone: place for place, backbone in enumerate(dict.fromkeys(c.backbone for c in self.cells))}
        return sorted(groups.values(), key=lambda group: order[group[0].backbone])

    def _is_settled(self, group: list[ResolvedCell]) -> bool:
        """Whether a run has all its rows of these methods, and a summary of as many episodes."""
        folder = self.folder.run_folder(self.folders[group[0].cell.title])
        asked = _asked(group)
        counts = count_rows(folder.results)
        if any(counts.done(arm.name, asked) < asked for arm in group[0].arms):
            return False
        try:
            summary = read_json(folder.summary)
            current = folder.summary.stat().st_mtime_ns >= counts.changed and summary["episodes"] == asked
            return current and not changed(folder, group[0])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _run(self, group: list[ResolvedCell], workers: ExitStack) -> str:
        """Run a cell; return why it failed, "" if it did not.

        Raises:
            KeyboardInterrupt: A signal has come.
        """
        started = time.monotonic()
        first = group[0]
        path = self.folder.path / self.folders[first.cell.title]
        try:
            methods = methods_of(first, str(path), _asked(group))
            self._use_former(methods)
            self._keep_needed(methods)
            data = build_data(methods[0].parsed)
            run = ProtocolRun(methods, data, methods[0].settings, self.console)
            run.loaded, run.shared = self._loaded, False
            run.pool = self._workers_of(run, workers)
            run.known = lambda: self._known_rows(first, methods, data)
            run.tells_device, self._told = not self._told, True
            run.run(show=False)
        except DataNotFound as error:
            reason = f"{error}\n{_fetching(data)}"
        except DtrapError as error:
            reason = str(error)
        except Exception as error:
            # One cell out of memory must not cost the night of the others.
            STOP.check()
            if not isinstance(error, MemoryError | torch.OutOfMemoryError | OSError):
                traceback.print_exc()  # nobody has foreseen it
            reason = (
                f"{type(error).__name__}: {first_line(error)}. See above, or run it alone: --only {first.cell.title}"
            )
        else:
            say(self.console, f"Finished {first.cell.title} in {time.monotonic() - started:.0f} s.")
            return ""
        reason = as_in_study(reason)
        say(self.console, f"Failed: {first.cell.title}: {first_line(Exception(reason))}")
        return reason

    def _check_precision(self, found: ResolvedCell) -> None:
        """Let all cells have the precision of those with results, where the device decides.

        Raises:
            DtrapError: This device decides otherwise.
        """
        folders = (self.folder.run_folder(name) for name in dict.fromkeys(self.folders.values()))
        stored = [content for folder in folders if (content := _identity_with_rows(folder))]
        self._former = any("default_precision" not in content for content in stored)
        methods = methods_of(found, "", 1)
        self._use_former(methods)
        settle_precision(methods)
        for content in stored:
            check_study(self.folder.path, methods[0], content)

    def _use_former(self, methods: Sequence[MethodConfig]) -> None:
        for method in methods:
            if self._former and method.values["trainer"].get("precision") is None:
                method.set_precision(FORMER)

    def _workers_of(self, run: ProtocolRun, workers: ExitStack) -> WorkerPool | None:
        """Return the worker processes, which are started for the first run and serve all."""
        if self._pool is None and run.settings.workers is not None:
            from ..workers.run import pool_of

            self._pool = workers.enter_context(pool_of(run.settings, run.methods, partial(say, self.console)))
        return self._pool

    def _keep_needed(self, methods: Sequence[MethodConfig]) -> None:
        """Free the backbones that this run does not use."""
        needed = {parts_key(method) for method in methods}
        unused = self._loaded.keys() - needed
        for key in unused:
            del self._loaded[key]
        if unused:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _known_rows(
        self, found: ResolvedCell, methods: Sequence[MethodConfig], data: FewShotDataModule
    ) -> dict[tuple[str, int], Row]:
        """Rows of the same methods on the same episodes in other cells."""
        rows: dict[tuple[str, int], Row] = {}
        for number, method in enumerate(methods):
            for folder, arm in self.sources.of(found, number):
                if self._is_source(folder, arm, method, data):
                    with suppress(DtrapError):
                        for row in self.folder.run_folder(folder).rows.read():
                            if row["method"] == arm:
                                marked = {**row, "same_as": arm, "copied_from": folder}
                                rows.setdefault((method.name, row["episode"]), marked)
        return rows

    def _is_source(self, folder: str, arm: str, method: MethodConfig, data: FewShotDataModule) -> bool:
        """Whether a folder's rows of an arm are those of this method: the study may have changed since."""
        try:
            stored = read_json(self.folder.run_folder(folder).identity)
            known = stored["methods"][arm]
            if stored["data_files"] != data.fingerprint:
                return False
            before, now = (effective_settings(values, method.own_tuner) for values in (known, method.values))
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return not changes(before, now) and not changes(known["data"], identity(method.values)["data"])

    def _all_diverged(self, found: ResolvedCell) -> str:
        """Return why a cell has no result although it is complete."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            summary = read_json(self.folder.run_folder(self.folders[found.cell.title]).summary)
            for arm in found.arms:
                method = summary["methods"][arm.name]
                if method["diverged"] and len(method["diverged"]) == method["episodes"]:
                    return f"'{arm.name}' has no result: all diverged ({method['diverged'][0]['reason']})"
        return ""


def _identity_with_rows(folder: RunFolder) -> dict[str, Any] | None:
    """Return the content of a run folder's identity.json; None without rows."""
    try:
        content: dict[str, Any] = read_json(folder.identity)
        return content if folder.results.stat().st_size and "methods" in content else None
    except (OSError, ValueError, TypeError):
        return None


def _asked(group: Sequence[ResolvedCell]) -> int:
    return max(found.episodes for found in group)


def _titles(group: Sequence[ResolvedCell]) -> str:
    more = ", ".join(found.cell.title for found in group[1:4])
    return f"{group[0].cell.title} (also {more}{', …' if len(group) > 4 else ''})" if more else group[0].cell.title


def _fetching(data: FewShotDataModule) -> str:
    from ...datamodules.catalog import SETS

    names = [name for name, kind in SETS.items() if type(data) is kind]
    root = data.root if isinstance(data.root, Path) else Path(data.root)
    return f"Get it: dtrap data fetch {names[0]} {root}" if names else ""
