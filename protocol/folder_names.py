"""The default run folder: named after the task, the model and what else differs from the shipped config."""

from __future__ import annotations

import copy
import glob
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configs import shipped_defaults
from ..datamodules.few_shot import FewShotDataModule
from ..parsing import read_json
from .folder_identity import Method, differs
from .identity import ABSENT, VALUES_BEFORE, Change, changes, default_folder_name, identity, name_part
from .run_folder import RunFolder

RUNS = Path("runs")
NAME_BYTES = 240  # of the 255 that a file system has, so that a temporary file next to it fits, too
SUFFIX_BYTES = 100
EXACT = re.compile(r"[a-z0-9][a-z0-9.-]*")
# What the other parts of the name say, or what is decided by the device or the data.
NAMED = {
    ("data", "init_args", "seed"),
    ("data", "init_args", "way"),
    ("data", "init_args", "shot"),
    ("data", "class_path"),
    ("model", "backbone", "init_args", "name"),
    ("model", "backbone", "init_args", "pretrained"),
    ("model", "backbone", "init_args", "identifier"),
    ("model", "backbone", "class_path"),
    ("model", "tuner", "class_path"),
    ("protocol", "method"),
}


def default_run_folder(methods: Sequence[Method], data: FewShotDataModule, runs: Path = RUNS) -> Path:
    """Return the folder of a run that is given none.

    Its name is that of `default_folder_name` and, after it, the options that differ from the shipped config, so that
    two trials do not meet. A folder under `runs` whose name begins so and that holds the same experiment is used, also
    one that an earlier version named without the options.

    Args:
        methods: The methods of the run, the main one first.
        data: The data module.
        runs: Where run folders are.
    """
    main = methods[0]
    base = base_name(main, data)
    name = "_".join([base, *_suffix(main, data, NAME_BYTES - len(base.encode()) - 1)])
    names = [name, base, *sorted(path.name for path in runs.glob(f"{glob.escape(base)}_*"))]
    for candidate in dict.fromkeys(names):
        if holds(runs / candidate, main):
            return runs / candidate
    if not RunFolder(runs / name).identity.exists():
        return runs / name
    # The folder of other settings whose names are the same.
    return runs / f"{name[: NAME_BYTES - 9]}_{_digest(_options(main, _plain_reference(main)))}"


def base_name(main: Method, data: FewShotDataModule) -> str:
    """Return the parts of the name that every run has."""
    all_way = " all-way" if data.streams else ""
    return default_folder_name(
        dataset=f"{data.root.resolve().name if data.own_images else data.title}{all_way}",
        way=None if data.tasks is not None else data.way,
        shot=data.shot if data.fixed_numbers else None,
        backbone=main.backbone,
        tuner=main.tuner_name,
        method=main.name,
        seed=data.seed,
    )


def holds(path: Path, method: Method) -> bool:
    """Return whether a run folder's main method is this one."""
    try:
        stored = read_json(RunFolder(path).identity)
        known = stored["methods"][stored["main"]]
        return not differs(known, _comparable(method, known))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not written by dtrap
        return False


def _comparable(method: Method, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a method, with what the device or the data decide as a folder has it."""
    values = copy.deepcopy(method.values)
    if method.default_precision or values["trainer"].get("precision") is None:
        values["trainer"]["precision"] = (known.get("trainer") or {}).get("precision")
    options = values["data"].get("init_args", {})
    option = "test_preprocessing"
    if option in options and options[option] is None:
        former = VALUES_BEFORE[f"data.init_args.{option}"]
        options[option] = known["data"].get("init_args", {}).get(option, former)
    return values


def _suffix(main: Method, data: FewShotDataModule, room: int) -> list[str]:
    """Return the readable part for what differs, with a digest where it is not exact; [] where nothing does."""
    reference = getattr(main, "reference", None)
    # A folder's number of images, or the numbers of another data module, are not in the name.
    unnamed: set[tuple[str, ...]] = {("data", "init_args", "way")} if data.tasks is not None else set()
    unnamed |= set() if data.fixed_numbers else {("data", "init_args", "shot")}
    overlays = [] if reference is None else [name for name in map(str, reference.overlays) if not _said(name, main)]
    found = _options(main, _plain_reference(main) if reference is None else reference.values, unnamed)
    pieces = [*(_overlay_piece(name) for name in overlays), *(_piece(path, value) for path, value in found)]
    if not pieces:
        return []
    exact = all(EXACT.fullmatch(_text(value)) for _, value in found)
    kept: list[str] = []
    for piece in pieces:
        if len("_".join([*kept, piece]).encode()) > min(SUFFIX_BYTES, room) - 9:
            exact = False
            break
        kept.append(piece)
    return kept if exact else [*kept, _digest([*((("config",), name) for name in overlays), *found])]


def _options(
    main: Method, reference: Mapping[str, Any], unnamed: set[tuple[str, ...]] | None = None
) -> list[tuple[tuple[str, ...], Any]]:
    """Return the options that differ from a reference, by path, without those that the name says otherwise."""
    settings = identity(main.values)
    found = changes(_aligned(identity(reference), settings), settings, {})
    return [(path, new) for path, new in map(_path_and_value, found) if _counts(path, new, main, unnamed or set())]


def _path_and_value(change: Change) -> tuple[tuple[str, ...], Any]:
    path, _, new = change
    return path, new


def _counts(path: tuple[str, ...], new: Any, main: Method, unnamed: set[tuple[str, ...]]) -> bool:
    if new is ABSENT or (path in NAMED and path not in unnamed):
        return False
    if path == ("trainer", "precision"):
        return not main.default_precision and new is not None
    if path == ("data", "init_args", "test_preprocessing"):
        return new is not None
    return len(path) > 1


def _aligned(old: Any, new: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with an empty mapping where the new ones have a part that they lack, so that options differ."""
    found = dict(old) if isinstance(old, Mapping) else {}
    return found | {key: _aligned(found.get(key), value) for key, value in new.items() if isinstance(value, Mapping)}


def _plain_reference(main: Method) -> dict[str, Any]:
    """Return the settings of a method of the same classes that leaves all options to their defaults."""
    return {**_classes(main.values), "trainer": shipped_defaults()["trainer"]}


def _classes(value: Any) -> Any:
    """Return nested settings with nothing but the classes."""
    if not isinstance(value, Mapping):
        return {}
    if "class_path" in value:
        inner = {key: _classes(item) for key, item in (value.get("init_args") or {}).items() if _has_class(item)}
        return {"class_path": value["class_path"], "init_args": inner}
    return {key: _classes(item) for key, item in value.items() if isinstance(item, Mapping)}


def _has_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def _said(overlay: str, main: Method) -> bool:
    """Whether the parts of the name say which shipped overlay was given."""
    kind, _, stem = overlay.removesuffix(".yaml").rpartition("/")
    said = {"tuners": main.tuner_name, "methods": main.name}
    return kind == "backbones" or (kind in said and _flat(said[kind]) == _flat(stem))


def _flat(text: str) -> str:
    return name_part(text).replace("_", "-")


def _overlay_piece(name: str) -> str:
    kind, _, stem = name.removesuffix(".yaml").rpartition("/")
    return _flat(stem if kind in ("tuners", "methods") else f"{kind} {stem}")


def _piece(path: tuple[str, ...], value: Any) -> str:
    """Return `tuner.rank-4` for an option: sections that are implied are left out."""
    words = [word for word in path if word not in ("init_args", "class_path")]
    words = words[1:] if words[0] in ("model", "trainer") and len(words) > 1 else words
    return f"{'.'.join(words).replace('_', '-')}-{_flat(_value(path, value))}"


def _value(path: tuple[str, ...], value: Any) -> str:
    return _text(value).rpartition(".")[2] if path[-1] == "class_path" else _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def _digest(found: Sequence[tuple[tuple[str, ...], Any]]) -> str:
    content = sorted([[".".join(path), _text(value)] for path, value in found])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
