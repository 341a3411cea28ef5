"""The YAML file of a study: what it may hold, and errors that name the file, the key and the value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...configs import SHIPPED
from ...errors import DtrapError, expected_one_of, nearest
from ...parsing import read_yaml
from ..identity import name_part
from ..measured import MEASURES, OF_ROW, is_measure
from .published import PUBLISHED
from .source import DECIDED, Source, shown

SETS_OF_CONFIGS = ("sets", "backbones", "tuners")
NUMBERS = ("shots", "seeds")
PART_KEYS = (
    *SETS_OF_CONFIGS,
    *NUMBERS,
    "grid",
    "arms",
    "compare",
    "episodes",
    "options",
    "measures",
    "figure",
    "verdict",
)
KEYS = (*PART_KEYS, "published", "parts")
FIGURES = ("heat_map", "coop")
DEFAULT = "default"  # the value of an axis that is [], which adds no overlay
LONGEST_NAME = 120  # bytes; files are named after arms, with an episode and an ending
LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class Choice:
    """A value of an axis, or an arm: what it is called, and the command line words that choose it."""

    name: str
    words: tuple[str, ...]


@dataclass
class Part:
    """One table of a study.

    Attributes:
        name: Its name, that of the study where it has no parts.
        title: First comment line of its file.
        configs: Choices of the axes "sets", "backbones" and "tuners" that the file gives.
        numbers: Values of the axes "shots" and "seeds" that the file gives.
        grid: Values of options, by their dotted names.
        arms: Methods on the same episodes, the main one first.
        compare: Name of the arm that the others are compared with.
        episodes: Number of episodes; None for that of the set, or of the number of shots.
        options: Command line words of all cells.
        measures: Flat names of the numbers that are shown.
        figure: "heat_map", "coop" or None.
        verdict: Flat name of the measure that decides an open question, "near_domain", or None.
        published: Key of the published numbers, or None.
    """

    name: str
    title: str
    configs: dict[str, list[Choice]]
    numbers: dict[str, list[int]]
    grid: dict[str, list[Any]]
    arms: list[Choice]
    compare: str
    episodes: int | None
    options: tuple[str, ...]
    measures: list[str]
    figure: str | None
    verdict: str | None
    published: str | None

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The values of each axis that the file gives, as they are shown."""
        chosen = {axis: [choice.name for choice in choices] for axis, choices in self.configs.items()}
        return {**chosen, **self.numbers, **self.grid}


@dataclass
class Study:
    """A study that was read from a file.

    Attributes:
        name: Stem of the file's name.
        title: First comment line.
        path: The file.
        parts: Its tables.
        files: All study files that were read.
    """

    name: str
    title: str
    path: Path
    parts: list[Part] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def find_study(name: str) -> Path:
    """Return the path of a study: a file of that name, relative to the current folder, or else a shipped study.

    Raises:
        DtrapError: There is neither.
    """
    if Path(name).expanduser().is_file():
        return Path(name).expanduser()
    folder = SHIPPED / "studies"
    stem = name.removeprefix("studies/").removesuffix(".yaml")
    path = folder / f"{stem}.yaml"
    if stem and "/" not in stem and path.is_file():
        return path
    shipped = shipped_studies()
    raise DtrapError(
        f"study '{name}' not found: neither a file here ({Path.cwd()}) nor a shipped study; "
        f"{expected_one_of(stem, shipped)}"
    )


def shipped_studies() -> list[str]:
    """Return the names of the shipped studies."""
    return sorted(path.stem for path in (SHIPPED / "studies").glob("*.yaml"))


def read_study(path: Path) -> Study:
    """Read and check a study file; the configs that it names are found, but not read.

    Raises:
        DtrapError: The file is not readable, or a key or value is not as expected.
    """
    content = _content(path)
    study = Study(name_part(path.stem), _title(path), path, files=[path])
    if "parts" not in content:
        study.parts = [_part(Source(path), study.name, study.title, content)]
        return study
    parts = content.pop("parts")
    source = Source(path)
    if not isinstance(parts, dict) or not parts:
        raise source.error("parts", parts, "a mapping such as {ablation: ablation.yaml}")
    for name, given in parts.items():
        study.parts.append(_part_of(source, study, name, given, content))
    folders = [name_part(part.name) for part in study.parts]
    for part, folder in zip(study.parts, folders, strict=True):
        if folders.count(folder) > 1:
            raise DtrapError(f"{path}: parts: several have names like '{part.name}' ('{folder}'). Rename one of them.")
    return study


def _part_of(source: Source, study: Study, name: object, given: Any, common: Mapping[str, Any]) -> Part:
    """Read a part: a study file, or keys of a study, which may name a study file as `study`."""
    where = f"parts.{name}"
    if not isinstance(name, str) or not name.strip():
        raise source.error("parts", name, "a text as the name of each part (quote it)")
    own = {"study": given} if isinstance(given, str) else given
    if not isinstance(own, dict):
        raise source.error(where, given, "a study file such as ablation.yaml, or keys of a study such as `sets:`")
    own = dict(own)
    base: dict[str, Any] = {}
    title = study.title
    inner = source
    if (file := own.pop("study", None)) is not None:
        if not isinstance(file, str):
            raise source.error(f"{where}.study", file, "a study file such as ablation.yaml")
        try:
            path = find_study(str(source.beside(file) or file))
        except DtrapError as error:
            raise DtrapError(f"{source.path}: {where}: {error}") from error
        base, title, inner = _content(path), _title(path), Source(path)
        study.files.append(path)
    for keys, key in ((base, inner), (own, source)):
        if "parts" in keys:
            raise DtrapError(
                f"{key.path}: {where} has parts of its own, but parts cannot be nested. Name its parts one by one."
            )
    source.check_keys(own, (*PART_KEYS, "published", "study"), f"{where}.")
    # The keys of the file, those of all parts, and the part's own; each replaces the one before it.
    merged = {**base, **common, **own}
    return _part(source, name, title, merged, f"{where}.", inner)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path, LARGEST_FILE, unique_keys=True)
    except (OSError, ValueError) as error:
        lines = " ".join(str(error).split())
        raise DtrapError(f"{path}: not readable as YAML ({lines[:300]}). Fix that line.") from error
    if not isinstance(content, dict):
        raise DtrapError(f"{path}: expected keys such as `sets:` and `arms:`, found {shown(content)}.")
    config = [key for key in ("data", "model", "trainer", "protocol") if key in content]
    if config and "sets" not in content:
        raise DtrapError(
            f"{path} is the config of a run (it has `{config[0]}:`), not a study. Run it with dtrap fit --config "
            f"{path}, or name it in a study: sets: [{path.name}]"
        )
    Source(path).check_keys(content, KEYS)
    return content


def _title(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline(1000)
    return first.removeprefix("#").strip() if first.startswith("#") else path.stem


def _part(
    source: Source, name: str, title: str, content: Mapping[str, Any], where: str = "", inner: Source | None = None
) -> Part:
    given = {key: value for key, value in content.items() if value is not None}
    # Names of configs in a study file are found next to it.
    reader = inner if inner is not None else source
    if not isinstance(given.get("sets"), list | dict):
        raise source.error(f"{where}sets", given.get("sets"), "a list of configs such as [isic_1shot.yaml]")
    configs = {axis: _choices(reader, f"{where}{axis}", given[axis], axis) for axis in SETS_OF_CONFIGS if axis in given}
    numbers = {axis: _numbers(source, f"{where}{axis}", given[axis], axis) for axis in NUMBERS if axis in given}
    arms = _arms(reader, f"{where}arms", given.get("arms", {"main": []}))
    compare = given.get("compare", arms[0].name)
    if compare not in [arm.name for arm in arms]:
        known = [arm.name for arm in arms]
        raise DtrapError(f"{source.path}: {where}compare: found {shown(compare)}; {expected_one_of(compare, known)}")
    figure = given.get("figure")
    if figure is not None and figure not in FIGURES:
        raise DtrapError(f"{source.path}: {where}figure: found {shown(figure)}; {expected_one_of(figure, FIGURES)}")
    part = Part(
        name=name,
        title=title,
        configs=configs,
        numbers=numbers,
        grid=_grid(source, f"{where}grid", given.get("grid", {})),
        arms=arms,
        compare=compare,
        episodes=_episodes(source, f"{where}episodes", given.get("episodes")),
        options=reader.words(f"{where}options", given.get("options", []), "a list such as [--trainer.max_epochs, 50]"),
        measures=_texts(source, f"{where}measures", given.get("measures", ["accuracy"])),
        figure=figure,
        verdict=given.get("verdict"),
        published=given.get("published"),
    )
    if part.published is not None and part.published not in PUBLISHED:
        expected = expected_one_of(str(part.published), list(PUBLISHED))
        raise DtrapError(f"{source.path}: {where}published: found {shown(part.published)}; {expected}")
    if figure == "coop" and "shots" not in numbers:
        raise DtrapError(f"{source.path}: {where}figure: 'coop' is drawn over shots. Give `shots:`, such as [1, 2, 4].")
    if figure == "heat_map" and len(part.grid) != 2:
        raise DtrapError(f"{source.path}: {where}figure: 'heat_map' is drawn over two options. Give both in `grid:`.")
    if part.verdict is not None and part.verdict not in (*part.measures, "near_domain"):
        expected = expected_one_of(str(part.verdict), [*part.measures, "near_domain"])
        raise DtrapError(f"{source.path}: {where}verdict: found {shown(part.verdict)}; {expected}")
    return part


def _choices(source: Source, key: str, given: Any, axis: str) -> list[Choice]:
    """Return the choices of an axis of configs: a list of names, or a mapping from names to overlays."""
    example = {"sets": "isic_1shot.yaml", "backbones": "backbones/pe_core.yaml", "tuners": "tuners/coop.yaml"}[axis]
    expected = f"a config such as {example}" + ("" if axis == "sets" else ", or [] for none")
    if isinstance(given, dict):
        named = [(name, value) for name, value in given.items()]
    elif isinstance(given, list):
        named = [(_shown_name(value), value) for value in given]
    else:
        raise source.error(key, given, f"a list of configs such as [{example}]")
    if not named:
        raise source.error(key, given, f"at least one value, such as [{example}]")
    choices = []
    for name, value in named:
        words = source.words(key, value, expected)
        if not isinstance(name, str) or not name.strip():
            raise source.error(key, name, "a text as the name of each value (quote it)")
        if axis == "sets" and not words:
            raise source.error(key, value, expected)
        choices.append(Choice(name, words))
    source.check_distinct(key, [choice.name for choice in choices])
    return choices


def _shown_name(value: Any) -> str:
    """The name of a choice that has none: its configs, without the options."""
    if value == []:
        return DEFAULT
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return value if isinstance(value, str) else ""


def _numbers(source: Source, key: str, given: Any, axis: str) -> list[int]:
    expected = "a list of whole numbers such as [1, 5]"
    least = 1 if axis == "shots" else 0
    if not isinstance(given, list) or not given:
        raise source.error(key, given, expected)
    for value in given:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise source.error(key, value, f"whole numbers of at least {least}, such as [1, 5]")
    source.check_distinct(key, given)
    return given


def _grid(source: Source, key: str, given: Any) -> dict[str, list[Any]]:
    expected = "options with lists of values, such as {stage_switch.stop: [2/5, 3/5]}"
    if not isinstance(given, dict):
        raise source.error(key, given, expected)
    grid: dict[str, list[Any]] = {}
    for name, values in given.items():
        option = name.removeprefix("--") if isinstance(name, str) else ""
        if "." not in option or not all(option.split(".")):
            raise source.error(key, name, "dotted options such as model.objective.anti_visual_weight")
        if option in DECIDED or option in ("data.shot", "data.seed"):
            instead = {"data.shot": "Use `shots:`.", "data.seed": "Use `seeds:`."}.get(option, "Leave it out.")
            raise DtrapError(f"{source.path}: {key}: {option} cannot be given in a grid. {instead}")
        if option in grid:
            raise DtrapError(f"{source.path}: {key}: {option} is given twice. Leave one out.")
        if not isinstance(values, list) or not values:
            raise source.error(f"{key}.{option}", values, "a list of values such as [0.0, 0.1]")
        source.check_distinct(f"{key}.{option}", values)
        grid[option] = values
    return grid


def _arms(source: Source, key: str, given: Any) -> list[Choice]:
    expected = "an overlay such as methods/baseline.yaml, a list of overlays and options, or [] for none"
    if not isinstance(given, dict) or not given:
        raise source.error(key, given, "arms such as {plain: methods/baseline.yaml, both: []}")
    arms = []
    for name, value in given.items():
        if not isinstance(name, str):
            raise source.error(key, name, f"a text as the name of an arm: '{name}'")
        if not name.strip() or "/" in name or "\0" in name or len(name.encode()) > LONGEST_NAME:
            raise source.error(
                key, name, f"a name without '/' of at most {LONGEST_NAME} bytes, since files are named after it"
            )
        arms.append(Choice(name, source.words(f"{key}.{name}", value, expected)))
        for word in arms[-1].words:
            if word.startswith("--protocol"):
                raise DtrapError(
                    f"{source.path}: {key}.{name}: {word} holds for all arms of a run. Put it in `options:`."
                )
    names = [arm.name.casefold() for arm in arms]
    for arm in arms:
        if names.count(arm.name.casefold()) > 1:
            raise DtrapError(
                f"{source.path}: {key}: two arms are called like '{arm.name}', and files are named after arms. Rename "
                "one of them."
            )
    return arms


def _episodes(source: Source, key: str, given: Any) -> int | None:
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise source.error(key, given, "a whole number of at least 1")
    return given


def _texts(source: Source, key: str, given: Any) -> list[str]:
    if not isinstance(given, list) or not given or not all(isinstance(item, str) and item for item in given):
        raise source.error(key, given, "a list of names of measures such as [accuracy, cross_entropy]")
    source.check_distinct(key, given)
    for name in given:
        if not is_measure(name):
            near = nearest(name, [*OF_ROW, *(f"query.{measure}" for measure in MEASURES)])
            raise DtrapError(
                f"{source.path}: {key}: found {shown(name)}; expected one of {', '.join(OF_ROW)}, or a measure of a "
                f"callback such as query.gap_drop.{near}"
            )
    return given
