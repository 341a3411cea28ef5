"""A report on runs and studies: what is read, what is left out, and the tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import DtrapError, first_line
from ...files import no_formula
from ..studies.folder import STUDY_JSON
from .merging import Comparison, compare_runs
from .run_tables import report_frame, run_tables
from .runs import DamagedError, Run, read_run
from .study_tables import study_folder, study_tables
from .tables import TextTable

if TYPE_CHECKING:
    from pandas import DataFrame

    from ..studies.results import StudyResults

MOST_NAMED = 3
MOST_CELLS = 40  # runs of studies that are read for charts


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
        comparison: The runs, those of studies included.
        studies: The studies.
        run_tables: The tables of the runs that belong to no study.
        left_out: Folders that could not be read, and why.
        notes: Methods of one name that are not the same, and why.
        alone: The runs that belong to no study; None without any.
    """

    comparison: Comparison
    studies: Sequence[StudyResults]
    run_tables: Sequence[TextTable]
    left_out: Sequence[str]
    notes: Sequence[str] = field(default_factory=list)
    alone: Comparison | None = None

    @property
    def tables(self) -> list[TextTable]:
        """The tables of the studies and the runs, for files."""
        return [*(table for study in self.studies for table in study_tables(study)), *self.run_tables]

    @property
    def title(self) -> str:
        """The title of the page."""
        if self.studies:
            return "; ".join(study.title or study.name for study in self.studies)
        titles = list(dict.fromkeys(task.description for task in self.comparison.tasks))
        more = f" and {len(titles) - MOST_NAMED} more" if len(titles) > MOST_NAMED else ""
        return f"Results: {', '.join(titles[:MOST_NAMED])}{more}"

    def csv(self) -> str:
        """Return the numbers as CSV: those of runs, and below them in columns of their own those of studies."""
        import pandas as pd

        frames: list[DataFrame] = [] if self.alone is None else [report_frame(self.alone)]
        frames += [study.frame.assign(study=study.name) for study in self.studies]
        frame = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
        frame.columns = [no_formula(str(name)) for name in frame.columns]
        texts = frame.select_dtypes(exclude="number").columns
        for name in texts:
            values = [no_formula(str(value)) if isinstance(value, str | Path) else value for value in frame[name]]
            frame[name] = pd.Series(values, index=frame.index, dtype=object)
        return frame.to_csv(index=False, lineterminator="\n")


def read_report(names: Sequence[str]) -> Report:
    """Read runs and studies.

    Args:
        names: Folders of runs or studies, or study files.

    Raises:
        DtrapError: None of them can be read.
    """
    folders, study_folders = _found(names)
    left_out: list[str] = []
    runs = _runs(folders, left_out)
    studies: list[StudyResults] = []
    for folder in study_folders:
        from ..studies.results import read_study

        try:
            studies.append(read_study(folder))
        except DtrapError as error:
            left_out.append(first_line(error))
    if not runs and not studies:
        raise DtrapError(_nothing(left_out))
    known = {os.path.realpath(run.folder) for run in runs}
    of_studies = _runs_of_studies(studies, known, left_out)
    alone = compare_runs(runs) if runs else None
    comparison = compare_runs([*runs, *of_studies]) if of_studies or alone is None else alone
    tables = run_tables(alone) if alone is not None else []
    return Report(comparison, studies, tables, left_out, alone.notes if alone is not None else [], alone)


def _runs_of_studies(studies: Sequence[StudyResults], known: set[str], left_out: list[str]) -> list[Run]:
    """Return the runs of studies for charts, the first ones; say once which can have none."""
    cells = dict.fromkeys(cell.folder for study in studies for part in study.parts for cell in part.cells)
    started = [folder for folder in cells if folder.is_dir() and os.path.realpath(folder) not in known]
    faults: list[str] = []
    runs = _runs(started[:MOST_CELLS], faults)
    if faults:
        which = "a run" if len(faults) == 1 else f"{len(faults)} runs"
        left_out.append(f"the charts of {which} of a study. {faults[0]}")
    if len(started) > MOST_CELLS:
        left_out.append(
            f"the charts of {len(started) - MOST_CELLS} of {len(started)} runs of a study; give those to dtrap report."
        )
    return runs


def _found(names: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Return the folders of runs and of studies, each once."""
    runs: dict[str, Path] = {}
    studies: dict[str, Path] = {}
    for name in names:
        path = Path(name).expanduser()
        if not path.is_dir() and (path.suffix in (".yaml", ".yml") or not path.exists()):
            path = study_folder(name) or path
        kind = studies if (path / STUDY_JSON).is_file() else runs
        kind.setdefault(os.path.realpath(path), path)
    return list(runs.values()), list(studies.values())


def _runs(folders: Sequence[Path], left_out: list[str]) -> list[Run]:
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except DamagedError as error:
            left_out.append(str(error))
    return runs


def _nothing(left_out: Sequence[str]) -> str:
    more = f"\nand {len(left_out) - MOST_NAMED} more folders" if len(left_out) > MOST_NAMED else ""
    return "\n".join(left_out[:MOST_NAMED]) + more
