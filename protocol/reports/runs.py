"""Read run folders for a report: fast, without torch, and with every text of them as that of a stranger."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...files import open_file
from ...parsing import parse_json, read_json
from ..measured import row_measures
from ..run_folder import Row, RunFolder

# A row has 15 kB with all that a callback adds, and 10 MB for the 1,000 classes of ImageNet.
LARGEST_ROWS = 2 << 30
LONGEST_TEXT = 300
# Terms and gap-shift curves are long lists, which only charts need. Of more episodes than these they are not decoded.
DETAILED_EPISODES = 50
_DETAILS = (b'"terms":', b'"curve":')
_NUMBERS = ("accuracy", "zero_shot_accuracy", "test_images", "support_images", "seed", "seconds", "copied_test_images")
NO_RUN = "Expected the folder of a run of dtrap fit"


class DamagedError(ValueError):
    """A folder that is left out of a report, and why."""


@dataclass
class Method:
    """One method of one run.

    Attributes:
        run: The run.
        name: Name of the method.
        backbone: Name of its backbone; "" in folders of the first version.
        tuner: Name of its tuner; "" in folders of the first version.
        settings: The method's part of identity.json.
        rows: Rows by episode, or by seed in the all-way protocol.
        values: Finite measures of the rows that did not diverge, by flat name and the rows' key.
    """

    run: Run
    name: str
    backbone: str
    tuner: str
    settings: dict[str, Any]
    rows: dict[int, Row] = field(default_factory=dict)
    values: dict[str, dict[int, float]] = field(default_factory=dict)


@dataclass
class Run:
    """A run folder.

    Attributes:
        folder: The folder as it was given.
        description: The task, such as "ISIC 5-way 5-shot".
        protocol: The task without the name of the data, such as "5-way 5-shot"; "" in folders of the first version.
        unit: What a row's key is: "episode" or "seed".
        asked: Number of episodes that were asked for.
        data_files: Fingerprint of the data files; None in folders of the first version.
        methods: The methods, the main one first.
        versions: Versions of the libraries, where the folder says them.
    """

    folder: Path
    description: str
    protocol: str
    unit: str
    asked: int
    data_files: str | None
    methods: list[Method] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        """The options of the data module that the main method has, with its class as "class_path"."""
        found = self.methods[0].settings.get("data")
        found = found if isinstance(found, dict) else {}
        options = found.get("init_args")
        return {**{key: value for key, value in found.items() if key != "init_args"}, **_mapping(options)}


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        DamagedError: The folder has no summary, identity or rows, or damaged ones.
    """
    files = RunFolder(folder)
    if not folder.is_dir():
        raise DamagedError(f"{folder} is not a folder. {NO_RUN}.")
    for path in (files.summary, files.identity, files.results):
        if not path.is_file():
            held = "; it holds it after the run has ended or was interrupted" if path == files.summary else ""
            raise DamagedError(f"{folder} has no {path.name}. {NO_RUN}{held}.")
        if not is_within(path, folder):
            raise DamagedError(f"{path} is a link to a file outside the run folder. {NO_RUN}.")
    try:
        run = _summary(folder, read_json(files.summary))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{files.summary}: not a summary of dtrap fit ({_reason(error)}). Start that run again with the same "
            "command: its results are kept and the summary is rewritten."
        ) from error
    try:
        _add_settings(run, read_json(files.identity))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{files.identity}: not written by dtrap ({_reason(error)}).") from error
    try:
        with _no_collection():
            _add_rows(run, files.results)
    except (OSError, ValueError) as error:
        raise DamagedError(f"{files.results}{_reason(error)}") from error
    return run


def is_within(path: Path, folder: Path) -> bool:
    """Return whether a file lies in a folder once all links are followed."""
    try:
        return path.resolve(strict=True).is_relative_to(folder.resolve(strict=True))
    except (OSError, RuntimeError):  # a broken link, or links in a circle
        return False


def number(value: Any) -> float:
    """Return a finite number; raise a ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"found {str(value)[:LONGEST_TEXT]!r} instead of a number")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is {str(value)[:LONGEST_TEXT]!r} instead of a text")
    return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]}…"


def _summary(folder: Path, summary: Any) -> Run:
    unit = summary["unit"] if summary.get("unit") in ("seed", "repeat", "task") else "episode"
    if summary.get("protocol") == "one task":  # a run of an earlier version calls it an episode
        unit = "task"
    asked = int(number(summary["episodes"]))
    description = _text(summary["description"], "the description")
    run = Run(folder, description, _text(summary.get("protocol", ""), "the protocol"), unit, asked, None)
    for name, method in summary["methods"].items():
        backbone, tuner = (_text(method.get(part, ""), part) for part in ("backbone", "tuner"))
        run.methods.append(Method(run, _text(name, "a method"), backbone, tuner, {}))
    if not run.methods:
        raise ValueError("it has no method")
    versions = summary.get("versions")
    run.versions = {str(key): _text(value, key) for key, value in _mapping(versions).items()}
    return run


def _add_settings(run: Run, identity: Any) -> None:
    run.data_files = None if identity.get("data_files") is None else _text(identity["data_files"], "data_files")
    for method in run.methods:
        settings = identity["methods"][method.name]
        if not isinstance(settings, dict):
            raise ValueError(f"the settings of '{method.name}' are no mapping")
        method.settings = settings


@contextmanager
def _no_collection() -> Iterator[None]:
    """Let Python not look for cycles, which takes a third of the time of reading rows, that have none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _add_rows(run: Run, path: Path) -> None:
    """Read the rows of the run's methods and asked episodes, the first of each (method, episode)."""
    methods = {method.name: method for method in run.methods}
    seen: set[tuple[str, int]] = set()
    for place, line in _lines(path):
        try:
            row = _decoded(line)
            name, episode = row["method"], row["episode"]
            if name not in methods or episode >= run.asked or (name, episode) in seen:
                continue
            seen.add((name, episode))
            method = methods[name]
            key = int(number(row["seed"])) if run.unit == "seed" and row.get("seed") is not None else episode
            _check(row)
            if not row.get("diverged"):
                for measure, value in row_measures(row).items():
                    method.values.setdefault(measure, {})[key] = value
            method.rows[key] = row
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f", line {place}: not a result row ({_reason(error)}). Delete that line and rerun that run; it runs "
                "the episode again."
            ) from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines with their numbers; without an incomplete last one, as a kill in a write leaves it."""
    read = 0
    with open_file(path) as file:
        for place, line in enumerate(file, start=1):
            read += len(line)
            if read > LARGEST_ROWS:
                raise ValueError(f": larger than {LARGEST_ROWS >> 20} MB")
            if not line.strip():
                continue
            if not line.endswith(b"\n"):
                try:
                    parse_json(line)
                except ValueError:
                    return
            yield place, line


def _decoded(line: bytes) -> Row:
    row = parse_json(_without_details(line))
    if not isinstance(row, dict) or not isinstance(row.get("method"), str):
        raise ValueError("expected a JSON object with 'method' and 'episode'")
    episode = row.get("episode")
    if isinstance(episode, bool) or not isinstance(episode, int) or episode < 0:
        raise ValueError("expected a JSON object with 'method' and 'episode'")
    if episode < DETAILED_EPISODES and any(key in line for key in _DETAILS):
        row = parse_json(line)
    return row


def _without_details(line: bytes) -> bytes:
    """Replace the values of terms and curves, which are flat mappings of lists, by null.

    The key's first quote cannot end a text: JSON has no key after a text without a comma. It cannot stand within a
    text either: there it would follow a backslash.
    """
    for key in _DETAILS:
        start = line.find(key)
        while start >= 0:
            first, end = line.find(b"{", start), line.find(b"}", start)
            flat = 0 <= first < end and not line[start + len(key) : first].strip() and line[start - 1 : start] != b"\\"
            if flat and line.find(b"{", first + 1, end) < 0:
                line = b"".join((line[: start + len(key)], b"null", line[end + 1 :]))
            start = line.find(key, start + len(key))
    return line


def _check(row: Row) -> None:
    """Raise a ValueError unless the parts of a row that a report reads have the expected types."""
    for key in _NUMBERS:
        value = row.get(key)
        if value is not None and type(value) is not int:
            number(value)
    for key in ("accuracy", "zero_shot_accuracy"):
        if row.get(key) is not None and not 0 <= row[key] <= 100:
            raise ValueError(f"its {key} {row[key]} is not between 0 and 100")
    classes = row.get("classes") or []
    if not isinstance(classes, list) or set(map(type, classes)) - {str}:
        raise ValueError("'classes' is no list of names")
    for key in ("per_class", "terms", "accuracy_at", "losses"):
        if not isinstance(row.get(key), dict | None):
            raise ValueError(f"{key!r} is no mapping")
    per_class = row.get("per_class") or {}
    if set(map(type, per_class.values())) - {float, int, type(None)}:
        raise ValueError("'per_class' has a value that is no number")
    if not isinstance(row.get("diverged"), str | None):
        raise ValueError("'diverged' is no text")
    confusion = row.get("confusion")
    if confusion is not None and not _is_square(confusion, len(classes)):
        raise ValueError("'confusion' has not a row and a column of counts for each class")


def _is_square(confusion: Any, size: int) -> bool:
    if not isinstance(confusion, list) or len(confusion) != size or set(map(type, confusion)) - {list}:
        return False
    return all(len(line) == size and not set(map(type, line)) - {int} and min(line) >= 0 for line in confusion)
