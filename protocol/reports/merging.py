"""Bring the methods of several runs together: tasks with the same episodes, merged methods, and conflicts by name."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..run_folder import Row
from ..statistics import Interval, resampling_ratio
from ..summary import tested_images
from .runs import Method, Run

# Options of the data that do not decide which images an episode has.
NOT_OF_EPISODES = {
    "batch_size", "drop_last", "episode", "preprocessing", "template", "test_preprocessing", "value_range", "views",
    "all_way.augmentation", "all_way.batch_size", "all_way.seeds",
}  # fmt: skip
# Rows of the same training agree in these, to the bit. "diverged" has a step in its words.
COMPARED = ("accuracy", "zero_shot_accuracy", "confusion")
MOST_DIFFERENCES = 2
LONGEST_VALUE = 24
ABSENT = object()


@dataclass(eq=False)
class Task:
    """Episodes that several runs have in common: methods on them are compared episode by episode.

    Attributes:
        title: The description, and what differs from other tasks of the same description.
        runs: The runs with these episodes.
        entries: The methods, the main one of the first run first.
        distinction: What the title says besides the description, such as "seed 2"; "" where the description will do.
    """

    runs: list[Run]
    entries: list[Entry] = field(default_factory=list)
    distinction: str = ""

    @property
    def description(self) -> str:
        """The description of its runs, such as "ISIC 5-way 5-shot"."""
        return self.runs[0].description

    @property
    def title(self) -> str:
        """The description with what distinguishes the task."""
        return f"{self.description}, {self.distinction}" if self.distinction else self.description

    @property
    def set_title(self) -> str:
        """The name of the data, without way and shot."""
        protocol = self.runs[0].protocol
        return self.description.removesuffix(protocol).strip() if protocol else self.description

    @property
    def unit(self) -> str:
        """What an episode is called."""
        return self.runs[0].unit


@dataclass(eq=False)
class Entry:
    """A method on a task, of one run or merged from several.

    Attributes:
        task: The task.
        sources: The method in each of its runs.
        variant: What distinguishes it from another method of the same name; "" where nothing has to.
        intervals: The measures' means that were computed so far, see `numbers.interval_of`.
    """

    task: Task
    sources: list[Method]
    variant: str = ""
    intervals: dict[str, Interval | None] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What the entries of one row of a table have in common: method, backbone, tuner and variant."""
        first = self.sources[0]
        return first.name, first.backbone, first.tuner, self.variant

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.sources[0].name

    @property
    def asked(self) -> int:
        """Number of episodes that were asked for, the most of its runs."""
        return max(source.run.asked for source in self.sources)

    @cached_property
    def rows(self) -> dict[int, Row]:
        """The rows of all its runs by episode or seed, in their order."""
        found: dict[int, Row] = {}
        for source in self.sources:
            found = {**source.rows, **found}
        return dict(sorted(found.items()))

    @cached_property
    def sound(self) -> list[Row]:
        """The rows that did not diverge."""
        return [row for row in self.rows.values() if not row.get("diverged")]

    @cached_property
    def test_images(self) -> int | None:
        """Number of test images of the rows that did not diverge; None if one does not say it."""
        return tested(self.sound)

    @cached_property
    def resampled(self) -> float | None:
        """Test images per training image, if the episodes are repeats of held-out images."""
        return resampling_ratio(self.sound)

    @cached_property
    def classes(self) -> tuple[int | None, list[str]]:
        """Number of classes of an episode, and those that had no test image in an episode of theirs."""
        rows = [row for row in self.sound if row.get("per_class") and row.get("classes")]
        missing = dict.fromkeys(name for row in rows for name in row["classes"] if row["per_class"].get(name) is None)
        return max((len(row["classes"]) for row in rows), default=None), list(missing)

    @cached_property
    def values(self) -> dict[str, dict[int, float]]:
        """Every measure's values by flat name and episode or seed; diverged ones are left out."""
        found: dict[str, dict[int, float]] = {}
        for source in self.sources:
            for name, values in source.values.items():
                found[name] = {**values, **found.get(name, {})}
        return {name: dict(sorted(values.items())) for name, values in found.items()}


@dataclass(frozen=True)
class Comparison:
    """All methods of some runs.

    Attributes:
        runs: The runs.
        tasks: The tasks in the order of the runs.
        notes: What was merged, and what could not be.
    """

    runs: list[Run]
    tasks: list[Task]
    notes: list[str]

    @property
    def entries(self) -> list[Entry]:
        """The entries of all tasks."""
        return [entry for task in self.tasks for entry in task.entries]

    def labels(self) -> dict[tuple[str, str, str, str], str]:
        """Return the name of each row of a table, with backbone, tuner or variant if several have this name."""
        keys = list(dict.fromkeys(entry.key for entry in self.entries))
        return {key: _label(key, keys) for key in keys}


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Group runs into tasks and merge methods that are the same."""
    tasks: list[Task] = []
    for run in runs:
        task = next((task for task in tasks if all(_same_episodes(run, other) for other in task.runs)), None)
        if task is None:
            tasks.append(Task([run]))
        else:
            task.runs.append(run)
    _distinguish_tasks(tasks)
    notes: list[str] = []
    for task in tasks:
        notes += _add_entries(task)
    _name_variants([entry for task in tasks for entry in task.entries])
    return Comparison(list(runs), tasks, notes)


def run_names(runs: Iterable[Run]) -> dict[int, str]:
    """Return the shortest end of each run's path that distinguishes it from the others, by the run's identity."""
    runs = list(runs)
    parts = {id(run): run.folder.absolute().parts for run in runs}
    names = {}
    for run in runs:
        own = parts[id(run)]
        others = [other for key, other in parts.items() if key != id(run)]
        size = next((n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in others)), len(own))
        names[id(run)] = "/".join(own[-size:])
    return names


def tested(rows: Iterable[Row]) -> int | None:
    """Return the number of test images of rows with an accuracy; None if one does not say it."""
    numbers = [tested_images(row) for row in rows if row.get("accuracy") is not None]
    known = [found for found in numbers if found is not None]
    return sum(known) if known and len(known) == len(numbers) else None


def flat_settings(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested settings by dotted path, as they are typed on the command line."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        place = path if key == "init_args" else f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and value:
            found |= flat_settings(value, place)
        else:
            found[place] = value
    return found


def _same_episodes(first: Run, second: Run) -> bool:
    if (first.description, first.unit) != (second.description, second.unit):
        return False
    if None not in (first.data_files, second.data_files) and first.data_files != second.data_files:
        return False
    if _data_differences(first, second):
        return False
    ours, theirs = _episodes(first), _episodes(second)
    return all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())


def _data_differences(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    """Options of the data with other values that decide the images of an episode; one that a run lacks is the same."""
    ignored = NOT_OF_EPISODES | ({"seed", "query", "way"} if first.unit == "seed" else set())
    return {
        key: values for key, values in _differences(first.data, second.data, both=True).items() if key not in ignored
    }


def _episodes(run: Run) -> dict[int, tuple[Any, ...]]:
    """What a run's rows say of the images of each episode."""
    return {
        key: (row.get("seed"), tuple(row.get("classes") or ()), tested_images(row))
        for method in run.methods
        for key, row in method.rows.items()
        if not row.get("diverged")
    }


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], *, both: bool = False
) -> dict[str, tuple[Any, Any]]:
    """Where two settings differ, by dotted path; with `both`, only where both have a value."""
    ours, theirs = flat_settings(first), flat_settings(second)
    return {
        key: (ours.get(key, ABSENT), theirs.get(key, ABSENT))
        for key in dict.fromkeys([*ours, *theirs])
        if not _equal(ours.get(key, ABSENT), theirs.get(key, ABSENT))
        and not (both and not (key in ours and key in theirs))
    }


def _equal(first: Any, second: Any) -> bool:
    return first == second and isinstance(first, bool) == isinstance(second, bool)


def _distinguish_tasks(tasks: Sequence[Task]) -> None:
    """Say what distinguishes tasks of one description, such as "seed 2" or "other data files"."""
    for description in dict.fromkeys(task.description for task in tasks):
        alike = [task for task in tasks if task.description == description]
        if len(alike) == 1:
            continue
        data = [flat_settings(task.runs[0].data) for task in alike]
        differing = [
            key
            for other in alike[1:]
            for key in _data_differences(alike[0].runs[0], other.runs[0])
            if key != "class_path"
        ]
        keys = list(dict.fromkeys(differing))[:MOST_DIFFERENCES]
        said = [", ".join(f"{key} {_shown(own.get(key))}" for key in keys) for own in data]
        for number, (task, words) in enumerate(zip(alike, said, strict=True), start=1):
            unique = words and said.count(words) == 1
            more = f"episodes {number} of {len(alike)}"
            task.distinction = words if unique else f"{words}, {more}" if words else more


def _add_entries(task: Task) -> list[str]:
    """Add the methods of a task's runs, merged where they are the same; return notes on those that are not."""
    notes, names = [], run_names(task.runs)
    for method in (method for run in task.runs for method in run.methods):
        alike = [entry for entry in task.entries if entry.key[:3] == (method.name, method.backbone, method.tuner)]
        faults = [(entry, _conflict(entry, method)) for entry in alike]
        same = next((entry for entry, fault in faults if not fault), None)
        if same is not None:
            same.sources.append(method)
            same.__dict__.pop("rows", None)
            continue
        task.entries.append(Entry(task, [method]))
        for entry, fault in faults:
            first, second = names[id(entry.sources[0].run)], names[id(method.run)]
            notes.append(f"'{method.name}' on {task.title} in {first} and {second}: {fault}. Both are shown.")
    return notes


def _conflict(entry: Entry, method: Method) -> str:
    """Say why a method is not the same as an entry's; "" if it is."""
    for source in entry.sources:
        found = _setting_differences(source, method)
        if found:
            shown = [f"{key} is {_shown(a)} and {_shown(b)}" for key, (a, b) in list(found.items())[:MOST_DIFFERENCES]]
            more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
            return f"{', '.join(shown)}{more}"
        common = source.rows.keys() & method.rows.keys()
        other = sum(not _same_row(source.rows[key], method.rows[key]) for key in common)
        if other:
            return f"the same config, but other numbers in {other} of {len(common)} common {entry.task.unit}s"
    return ""


def _setting_differences(first: Method, second: Method) -> dict[str, tuple[Any, Any]]:
    """Settings with other values. One that a run lacks was added later: rows say whether it changed anything."""
    evident = bool(first.rows.keys() & second.rows.keys())
    found = _differences(first.settings, second.settings, both=evident)
    # The name in a config is that of the main method. More seeds or episodes are the same method.
    return {
        key: values
        for key, values in found.items()
        if not key.startswith("protocol.") and key not in ("protocol", "data.all_way.seeds")
    }


def _same_row(first: Row, second: Row) -> bool:
    if bool(first.get("diverged")) != bool(second.get("diverged")):
        return False
    shared = (key for key in COMPARED if first.get(key) is not None and second.get(key) is not None)
    return all(first[key] == second[key] for key in shared)


def _name_variants(entries: Sequence[Entry]) -> None:
    """Name methods of one name on one task by the settings in which they differ, else by their run."""
    for key in dict.fromkeys(entry.key[:3] for entry in entries):
        alike = [entry for entry in entries if entry.key[:3] == key]
        by_task: dict[Hashable, list[Entry]] = {}
        for entry in alike:
            by_task.setdefault(id(entry.task), []).append(entry)
        groups = [group for group in by_task.values() if len(group) > 1]
        if not groups:
            continue
        differing = dict.fromkeys(
            setting
            for first, *others in groups
            for other in others
            for setting in _setting_differences(first.sources[0], other.sources[0])
        )
        _name_by_settings(alike, list(differing) if len(differing) <= MOST_DIFFERENCES else [])
        names = run_names(source.run for entry in alike for source in entry.sources)
        for group in groups:
            said = [entry.variant for entry in group]
            for entry, words in zip(group, said, strict=True):
                if not words or said.count(words) > 1:
                    run = f"in {names[id(entry.sources[0].run)]}"
                    entry.variant = f"{words}, {run}" if words else run


def _name_by_settings(entries: Sequence[Entry], differing: Sequence[str]) -> None:
    for entry in entries:
        settings = flat_settings(entry.sources[0].settings)
        entry.variant = ", ".join(f"{key.rpartition('.')[2]} {_shown(settings.get(key, ABSENT))}" for key in differing)


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "unset"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"…{text[-LONGEST_VALUE:]}"


def _label(key: tuple[str, str, str, str], keys: Sequence[tuple[str, str, str, str]]) -> str:
    namesakes = [other for other in keys if other[0] == key[0]]
    differing = [
        value or f"unknown {part}"
        for place, (part, value) in enumerate(zip(("backbone", "tuner"), key[1:3], strict=True), start=1)
        if len({other[place] for other in namesakes}) > 1
    ]
    if key[3] and len(namesakes) > 1:
        differing.append(key[3])
    return f"{key[0]} ({', '.join(differing)})" if differing else key[0]
