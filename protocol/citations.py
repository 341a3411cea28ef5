"""The references of what runs used: one file of BibTeX entries, whose keys tuners, data sets and backbones name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import DtrapError
from ..parsing import read_json
from .adapters import is_exported, read_card
from .run_folder import RunFolder

REFERENCES = Path(__file__).parents[1] / "assets" / "references.bib"
_ENTRY = re.compile(r"^@\w+\{([^,]+),\n.*?^\}\n", re.DOTALL | re.MULTILINE)
_OWN = f"{__package__.partition('.')[0]}."
# By the library: the key, and the name of the package in the versions that a run keeps.
_ALWAYS = {"torch": "paszke2019pytorch", "lightning": "falcon2019lightning"}
_LIBRARIES = {
    "open_clip_torch": "ilharco2021openclip",
    "transformers": "wolf2020transformers",
    "peft": "mangrulkar2022peft",
}


@dataclass
class Used:
    """What runs used.

    Attributes:
        parts: Class path and arguments of the tuners, backbones and data modules, each once.
        versions: Versions of libraries that the runs keep, by package.
        notes: What is not known of a run.
    """

    parts: dict[str, list[tuple[str, dict[str, Any]]]] = field(
        default_factory=lambda: {"tuner": [], "backbone": [], "data": []}
    )
    versions: dict[str, set[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, part: Any) -> None:
        """Record a part of a config: its class and its arguments."""
        path = part.get("class_path") if isinstance(part, Mapping) else None
        if not isinstance(path, str):
            self.notes.append(f"a {kind} is not said by name")
            return
        arguments = part.get("init_args")
        found = (path, dict(arguments) if isinstance(arguments, Mapping) else {})
        if found not in self.parts[kind]:
            self.parts[kind].append(found)
        if kind == "tuner" and isinstance(found[1].get("tuner"), Mapping):  # of one around another one
            self.add(kind, found[1]["tuner"])

    def add_method(self, settings: Any) -> None:
        """Record the parts of a method's settings."""
        settings = settings if isinstance(settings, Mapping) else {}
        model = settings.get("model")
        model = model if isinstance(model, Mapping) else {}
        for kind, part in (("tuner", model.get("tuner")), ("backbone", model.get("backbone"))):
            self.add(kind, part)
        self.add("data", settings.get("data"))

    def add_versions(self, versions: Any) -> None:
        """Record the versions of libraries."""
        for name, version in versions.items() if isinstance(versions, Mapping) else ():
            if isinstance(version, str) and re.fullmatch(r"[\w.+!-]{1,40}", version):
                self.versions.setdefault(str(name), set()).add(version)


def used_by(names: Sequence[str]) -> Used:
    """Read what runs, studies and adapters used.

    Args:
        names: Run folders, folders of studies or other folders of runs, adapters, or folders of adapters.

    Raises:
        DtrapError: One of them is none of these, or cannot be read.
    """
    used = Used()
    for name in names:
        path = Path(name).expanduser()
        runs = [*_runs(path)]
        for run in runs:
            _add_run(used, run)
        if not runs:
            _add_adapter(used, path)
    return used


def _runs(path: Path) -> Iterator[RunFolder]:
    """Yield the run of a folder, or the runs in it and one folder lower."""
    for folder in (path, *sorted(path.glob("*/")), *sorted(path.glob("*/*/"))) if path.is_dir() else ():
        files = RunFolder(folder)
        if files.identity.is_file():
            yield files
            if folder == path:
                return


def _add_run(used: Used, files: RunFolder) -> None:
    try:
        identity = read_json(files.identity)
        methods = identity.get("methods", {"": identity})
        for settings in methods.values():
            used.add_method(settings)
        if files.summary.is_file():
            used.add_versions(read_json(files.summary).get("versions"))
    except (OSError, ValueError, AttributeError) as error:
        raise DtrapError(
            f"{files.identity}: not the file of a run ({error}). Give the folder of a run that dtrap fit wrote."
        ) from error


def _add_adapter(used: Used, path: Path) -> None:
    """Record the parts of an adapter, or of those in a folder."""
    found = [path]
    if path.is_dir() and not is_exported(path):
        found = sorted(path.glob("*.safetensors"))
    if not path.exists() or not found:
        what = "does not exist" if not path.exists() else "has no run and no adapter"
        raise DtrapError(f"{path} {what}. Give a run folder such as runs/my_run, the folder of a study, or an adapter.")
    for file in found:
        card = read_card(file)
        if card.model:
            used.add("tuner", card.model.get("tuner"))
            used.add("backbone", card.model.get("backbone"))
        else:
            used.notes.append(f"the card of {file.name} does not say its tuner and backbone by class")
        if card.data is not None:
            used.add("data", card.data)
        used.add_versions(card.versions)


def bibtex(used: Used) -> str:
    """Return BibTeX of what was used, with comment lines for what has no reference here."""
    entries = read_references()
    keys = {"method": ["zhang2026trap"]}
    comments: list[str] = []
    libraries = [*_ALWAYS]
    for kind, parts in used.parts.items():
        keys[kind] = []
        for path, arguments in parts:
            found, library, comment = _references(kind, path, arguments)
            keys[kind] += found
            libraries += library
            comments += [comment] if comment else []
    names = _ALWAYS | _LIBRARIES
    software = ["dtrap", *(names[name] for name in dict.fromkeys(libraries))]
    versions = {names.get(name, name): sorted(found) for name, found in used.versions.items()}
    texts = [f"% {_comment(text)}\n" for text in dict.fromkeys([*comments, *used.notes])]
    for title, chosen in (*keys.items(), ("software", software)):
        unseen = [key for key in dict.fromkeys(chosen) if key in entries]
        if unseen:
            texts.append(
                f"% {title}\n" + "\n".join(_with_version(entries.pop(key), versions.get(key)) for key in unseen)
            )
    return "\n".join(texts)


def _references(kind: str, path: str, arguments: dict[str, Any]) -> tuple[list[str], list[str], str]:
    """Return the keys of a class, the libraries that it stands for, and a comment where there is no reference."""
    component = _class(path)
    if component is None:
        return [], [], f"{path} ({kind}) is not a class of dtrap: add its reference"
    keys = list(component.cited(arguments))
    libraries = [name for name in component.libraries if name in _LIBRARIES]
    if getattr(component, "own_images", False):
        return keys, libraries, f"the images are your own ({path.rpartition('.')[2]}): add a reference if they have one"
    if kind == "backbone":
        weights = " ".join(str(arguments[name]) for name in ("name", "pretrained") if arguments.get(name))
        return keys, libraries, "" if keys else f"weights {weights}: no reference is known here, add theirs"
    what = f" with {_config_of(arguments)}" if arguments.get("config") else ""
    return keys, libraries, "" if keys else f"{path.rpartition('.')[2]}{what} ({kind}): no reference is known here"


def _config_of(arguments: Mapping[str, Any]) -> str:
    config = arguments["config"]
    return str(config.get("class_path", "")) if isinstance(config, Mapping) else ""


def _class(path: str) -> Any:
    """Return a class of dtrap by its path; None for others, which are not imported."""
    module, _, name = path.rpartition(".")
    if not path.startswith(_OWN) or not re.fullmatch(r"[\w.]+", path):
        return None
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        return None
    return found if isinstance(found, type) and hasattr(found, "cited") else None


def read_references() -> dict[str, str]:
    """Return the entries of the file, by key."""
    text = REFERENCES.read_text(encoding="utf-8")
    return {match[1]: match[0] for match in _ENTRY.finditer(text)}


def _with_version(entry: str, versions: Iterable[str] | None) -> str:
    """Return an entry with the versions that the runs keep."""
    if not versions:
        return entry
    return entry.removesuffix("\n}\n") + f",\n  note = {{Version {', '.join(versions)}}}\n}}\n"


def _comment(text: str) -> str:
    """Return a text for a comment line: BibTeX would read an entry behind an @."""
    return " ".join(text.replace("@", " at ").split())
