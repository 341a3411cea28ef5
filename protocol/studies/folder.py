"""The folder of a study: study.json, and the run folders of its cells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DtrapError
from ...files import remove_leftovers, to_json_values, write_atomically
from ...parsing import parse_json, read_json
from ..run_folder import RunFolder
from .file import Study

FORMAT = "dtrap-study/1"
STUDY_JSON = "study.json"
REMEDY = "and rerun the same command; it resumes. Or choose another folder with --folder."
# A row begins with its episode and method, so that rows are counted without decoding them.
_ROW = re.compile(rb'\{"episode": (\d+), "method": ("(?:[^"\\]|\\.)*"), ')
_SECONDS = re.compile(rb'"seconds": ([\d.]+)')
_COPY = re.compile(rb'"same_as": "')


@dataclass
class Counts:
    """What a cell's result file holds.

    Attributes:
        size: Length of the file in bytes.
        changed: When it was changed last, in nanoseconds.
        episodes: Finished episodes of each method, in ascending order.
        seconds: Number of rows that were computed there, and their seconds, of each method.
    """

    size: int = 0
    changed: int = 0
    episodes: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, tuple[int, float]] = field(default_factory=dict)

    def done(self, arm: str, episodes: int) -> int:
        """Return how many of the first episodes a method has finished."""
        return sum(episode < episodes for episode in self.episodes.get(arm, ()))


def count_rows(path: Path, known: Counts | None = None) -> Counts:
    """Count the rows of a result file; `known` is returned if the file has not changed since."""
    try:
        state = path.stat()
    except OSError:
        return Counts()
    if known is not None and (known.size, known.changed) == (state.st_size, state.st_mtime_ns):
        return known
    counts = Counts(state.st_size, state.st_mtime_ns)
    finished: dict[str, set[int]] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return Counts()
    for line in lines:
        found = _ROW.match(line)
        if found is None or not line.rstrip().endswith(b"}") or (line is lines[-1] and not _is_json(line)):
            continue  # nothing, or the row that a kill has cut
        method = json.loads(found[2])
        finished.setdefault(method, set()).add(int(found[1]))
        seconds = _SECONDS.findall(line)
        if seconds and not _COPY.search(line):
            number, total = counts.seconds.get(method, (0, 0.0))
            counts.seconds[method] = number + 1, total + float(seconds[-1])
    counts.episodes = {method: sorted(episodes) for method, episodes in finished.items()}
    return counts


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


class StudyFolder:
    """The folder of a study.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.json = path / STUDY_JSON

    def run_folder(self, folder: str) -> RunFolder:
        """Return the run folder of a cell."""
        return RunFolder(self.path / folder)

    def check(self, study: Study) -> dict[str, Any]:
        """Return what the folder's study.json holds; {} for a new folder.

        Raises:
            DtrapError: The folder belongs to another study, or to something else.
        """
        if RunFolder(self.path).identity.exists():
            raise DtrapError(f"{self.path} is the folder of a run, not of a study. Choose another with --folder.")
        try:
            stored = read_json(self.json)
            if stored["format"] != FORMAT:
                raise ValueError(f"format {stored['format']!r}, expected {FORMAT!r}")
            name = stored["name"]
        except (FileNotFoundError, NotADirectoryError):
            if self.path.exists() and (not self.path.is_dir() or any(_foreign(self.path))):
                raise DtrapError(
                    f"{self.path} exists and has no {STUDY_JSON}: it is not the folder of a study. Choose another with "
                    "--folder."
                ) from None
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise DtrapError(
                f"{self.json}: not written by dtrap ({error}). Delete that file if the folder is that of this study, "
                "or choose another with --folder."
            ) from error
        if name != study.name:
            raise DtrapError(
                f"{self.path} is the folder of the study '{name}', not of '{study.name}'. Choose another with --folder."
            )
        return stored  # type: ignore[no-any-return]

    def write(self, study: Study, parts: Sequence[dict[str, Any]]) -> None:
        """Write study.json; a file with the same content stays as it is."""
        content = {
            "format": FORMAT,
            "name": study.name,
            "title": study.title,
            "file": str(study.path.resolve()),
            "parts": list(parts),
        }
        text = json.dumps(to_json_values(content), ensure_ascii=False, indent=1) + "\n"
        with suppress(OSError):
            if self.json.read_text(encoding="utf-8") == text:
                return
        remove_leftovers(self.path, "*.json")
        write_atomically(self.json, text, REMEDY)


def _foreign(path: Path) -> Iterable[Path]:
    """What else a folder holds than a study leaves there before its study.json."""
    return (found for found in path.iterdir() if found.name != "plan.json" and not found.name.startswith("."))
