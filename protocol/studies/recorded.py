"""What a study's folder holds: the parts and cells of `study.json`, and the rows of each cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from ...errors import DtrapError
from ...parsing import read_json
from ..run_folder import Row, RunFolder
from .folder import FORMAT, STUDY_JSON

SETS = "sets"
FINISHED, UNFINISHED, MISSING, FAILED = "finished", "unfinished", "missing", "failed"


@dataclass(frozen=True)
class StudyCell:
    """One run of a study.

    Attributes:
        name: Name of the cell.
        folder: Its run folder.
        axes: Value of each axis, as the study file has it.
        set_title: Title of the data set, which no other set of the part has.
        asked: Number of episodes asked for; None if it is not known.
        failed: Why the cell has failed or cannot be read; "" if it has not.
        unit: What an episode is called: "episode", or "seed" in the all-way protocol.
        as_published: Arms that published numbers may stand next to.
        rows: The rows of each arm, of the episodes that were asked for.
    """

    name: str
    folder: Path
    axes: Mapping[str, Any]
    set_title: str
    asked: int | None = None
    failed: str = ""
    unit: str = "episode"
    as_published: Sequence[str] = ()
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict, repr=False)

    @property
    def state(self) -> str:
        """Return "finished", "unfinished", "missing" (no row yet) or "failed"."""
        if self.failed:
            return FAILED
        done = [len(rows) for rows in self.rows.values()]
        if not any(done):
            return MISSING
        return FINISHED if min(done) >= (self.asked or max(done)) else UNFINISHED


@dataclass(frozen=True)
class StudyPart:
    """One study of a study file; most files have one.

    Attributes:
        name: Name of the part.
        title: What it is.
        axes: The values of each axis.
        arms: Names of the arms.
        compare: The arm that the others are compared with; None for none.
        measures: Flat names of the measures that are shown.
        figure: "heat_map", "coop" or None.
        verdict: The measure that decides an open question, "near_domain", or None.
        published: Key of the published numbers; None for none.
        cells: Its runs.
    """

    name: str
    title: str
    axes: Mapping[str, Sequence[Any]]
    arms: Sequence[str]
    compare: str | None
    measures: Sequence[str]
    figure: str | None
    published: str | None
    cells: Sequence[StudyCell]
    verdict: str | None = None


def read_parts(folder: Path, failed: Mapping[str, str]) -> tuple[str, str, list[StudyPart]]:
    """Return name, title and parts of a study with the rows that it has so far.

    Args:
        folder: The study's folder.
        failed: Why cells have failed, by part and name such as "ablation/isic_1shot".

    Raises:
        DtrapError: The folder has no `study.json`, or a damaged one. A damaged cell is marked as failed.
    """
    path = folder / STUDY_JSON
    try:
        study = read_json(path)
        if study["format"] != FORMAT:
            raise ValueError(f"its format is {study['format']!r}; expected {FORMAT!r}")
        known: dict[Path, list[Row]] = {}
        parts = [_part(folder, part, known, failed) for part in study["parts"]]
        return str(study["name"]), str(study["title"]), parts
    except (FileNotFoundError, NotADirectoryError):
        what = f"has no {STUDY_JSON}" if folder.is_dir() else "is not a folder"
        raise DtrapError(f"{folder} {what}. Expected the folder of a study, which `dtrap study` writes.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)[:200]
        raise DtrapError(
            f"{path}: not the record of a study ({reason}). Start `dtrap study` again with the same file: the results "
            "are kept and the record is rewritten."
        ) from error


def _part(folder: Path, part: Mapping[str, Any], known: dict[Path, list[Row]], failed: Mapping[str, str]) -> StudyPart:
    arms = [str(arm) for arm in part["arms"]]
    cells = [
        _cell(folder, cell, arms, known, failed.get(f"{part['name']}/{cell['name']}", "")) for cell in part["cells"]
    ]
    titles = _titles(cells)
    return StudyPart(
        name=str(part["name"]),
        title=str(part["title"]),
        axes={str(axis): list(values) for axis, values in part["axes"].items()},
        arms=arms,
        compare=part["compare"] if part.get("compare") in arms else None,
        measures=[str(name) for name in part.get("measures") or ["accuracy"]],
        figure=part.get("figure"),
        published=part.get("published"),
        verdict=part.get("verdict"),
        cells=[replace(cell, set_title=titles[_set_of(cell)]) for cell in cells],
    )


def _set_of(cell: StudyCell) -> str:
    return str(cell.axes.get(SETS) or cell.set_title)


def _titles(cells: Sequence[StudyCell]) -> dict[str, str]:
    """Return the title of each set: what the titles of its cells have in common, and its config if that is not enough.

    "ISIC 5-way 1-shot" and "ISIC 5-way 5-shot" become "ISIC 5-way".
    """
    by_set: dict[str, list[list[str]]] = {}
    for cell in cells:
        by_set.setdefault(_set_of(cell), []).append(cell.set_title.split())
    texts = {
        name: " ".join(same[0] for same in takewhile(lambda found: len(set(found)) == 1, zip(*words, strict=False)))
        or name
        for name, words in by_set.items()
    }
    common = Counter(texts.values())
    return {name: text if common[text] == 1 else f"{text} ({name})" for name, text in texts.items()}


def _cell(
    folder: Path, cell: Mapping[str, Any], arms: Sequence[str], known: dict[Path, list[Row]], failed: str
) -> StudyCell:
    relative = Path(cell["folder"])
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"the folder {str(relative)!r} of a cell is outside of the study's")
    path = folder / relative
    rows: list[Row] = []
    try:
        rows = known[path] if path in known else known.setdefault(path, RunFolder(path).rows.read())
    except DtrapError as error:
        failed = failed or str(error)
    asked = None if cell.get("episodes") is None else int(cell["episodes"])
    return StudyCell(
        name=str(cell["name"]),
        folder=path,
        axes=dict(cell["axes"]),
        set_title=str(cell["set_title"]),
        asked=asked,
        failed=failed,
        unit=str(cell.get("unit") or "episode"),
        as_published=[str(arm) for arm in cell.get("as_published") or ()],
        rows={arm: _rows_of(arm, rows, asked) for arm in arms},
    )


def _rows_of(arm: str, rows: Sequence[Row], asked: int | None) -> list[Row]:
    # A method that sees the queries is called so in the rows, see `method_names`.
    own = [row for row in rows if row["method"] in (arm, f"{arm}-transductive")]
    return [row for row in own if asked is None or row["episode"] < asked]
