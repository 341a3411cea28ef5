"""Which settings identify an experiment, how two identities are compared, and the default name of a run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
import sys
import textwrap
import typing
import unicodedata
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import as_typed
from .paths import same_path

NEUTRAL_TRAINER_FLAGS = {
    "accelerator",
    "barebones",
    "benchmark",
    "default_root_dir",
    "detect_anomaly",
    "deterministic",
    "devices",
    "inference_mode",
    "log_every_n_steps",
    "logger",
    "model_registry",
    "num_nodes",
    "num_sanity_val_steps",
    "profiler",
    "strategy",
}
# bad_images and small_classes cannot change an episode whose images are all readable, and the fingerprint of the data
# files says which images there are. A user who follows the advice of an error to skip can therefore resume.
# The fingerprint covers the content of a subset file, too, and what a table says.
NEUTRAL_DATA_OPTIONS = {
    "root",
    "query_root",
    "num_workers",
    "bad_images",
    "small_classes",
    "subset",
    "episode",
    "table",
}
# Callbacks that only measure; a callback of dtrap has its class path with or without its module.
NEUTRAL_CALLBACKS = {"AlignmentMonitor", "CostMonitor", "NearDomainWarning"}
NEUTRAL = {
    (): {"config"},
    ("data",): NEUTRAL_DATA_OPTIONS,
    ("data", "init_args"): NEUTRAL_DATA_OPTIONS,
    ("model",): {"image_chunk", "text_chunk"},
    ("model", "init_args"): {"image_chunk", "text_chunk"},
    ("protocol",): {
        "checkpoint_every",
        "compare",
        "episodes",
        "feature_store",
        "folder",
        "log_paths",
        "overwrite",
        "pictures",
        "relevance",
        "save_adapters",
        "save_features",
        "side_by_side",
        "save_predictions",
        "workers",
    },
    ("trainer",): NEUTRAL_TRAINER_FLAGS,
}
# Value that the code had before an option existed, by the option's dotted path such as
# "model.objective.init_args.relation_form", where that is not the option's default today.
VALUES_BEFORE: dict[str, Any] = {"data.init_args.test_preprocessing": "squash"}
# A stored class path is imported only from these packages: a run folder may come from a stranger.
IMPORTED = ("dtrap.callbacks.", "dtrap.datamodules.", "dtrap.lightning_modules.")
NAME_PART_BYTES = 48
SHOWN_CHARACTERS = 80
ABSENT = object()

# Where two identities differ: the path of keys, the old value and the new one; `ABSENT` for none.
Change = tuple[tuple[str, ...], object, object]


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved config that decides the numbers of a run; rows of two identities never mix.

    Left out are the place of the data, the handling of unreadable images, workers, device and display flags of the
    Trainer, loggers, callbacks that only measure, the chunk sizes of the towers, the number of episodes, the options
    for files that a run writes, and empty sections. An unknown key counts. Tuples become lists and paths text, as in a
    config read from a file.
    """
    return _without_neutral(config, ())


def difference(old: object, new: object) -> list[str]:
    """Compare two identities and return lines such as `model.tuner.rank: 16 in the folder, 4 now`.

    A key that one of the two lacks counts as the default of that option, or as the value in `VALUES_BEFORE`: a run
    folder from before an option existed can be resumed. Two paths of the same class are equal, so that a class may be
    renamed.

    Args:
        old: Identity of the run in the folder.
        new: Identity of the requested run.
    """
    return [
        f"{as_typed('.'.join(path))[2:]}: {_shown(before)} in the folder, {_shown(now)} now"
        for path, before, now in changes(old, new)
    ]


def changes(old: object, new: object, before: Mapping[str, Any] = VALUES_BEFORE) -> list[Change]:
    """Compare two identities as `difference` does, and return where they differ.

    Args:
        old: Identity of the run in the folder.
        new: Identity of the requested run.
        before: Values that options had before they existed, by dotted path.
    """
    return list(_changes(old, new, (), None, before))


def default_folder_name(
    *, dataset: str, backbone: str, tuner: str, method: str, seed: int, way: int | None = None, shot: int | None = None
) -> str:
    """Return a folder name such as `isic_5way_5shot_vit-b-16-quickgelu_openai_lora_svl-ra_seed1`.

    Args:
        dataset: Title of the data set or name of the user's folder.
        backbone: Name and tag, separated by `/`.
        tuner: Name of the tuner.
        method: Name of the method, such as `SVL + RA`.
        seed: Seed of the episodes.
        way: Classes per episode; None if an episode has all classes.
        shot: Support images per class; None if an episode has all images.

    Returns:
        At most 255 bytes of letters, digits and `.`, `-`, `_`. A cut part ends with a hash of the whole.
    """
    parts = [name_part(dataset)]
    if way is not None:
        parts.append(f"{way}way")
    if shot is not None:
        parts.append(f"{shot}shot")
    return "_".join([*parts, name_part(backbone), name_part(tuner), name_part(method), f"seed{seed}"])


def _without_neutral(value: Any, path: tuple[str, ...]) -> Any:
    if path == ("trainer", "callbacks"):
        value = _training_callbacks(value)
    if path == ("data",):
        value = _without_repeats(value)
    if isinstance(value, Mapping):
        kept = {str(key): item for key, item in value.items() if not _is_neutral(str(key), path)}
        cleaned = {key: _without_neutral(item, (*path, key)) for key, item in kept.items()}
        return {key: item for key, item in cleaned.items() if item != {}}
    if isinstance(value, list | tuple):
        return [_without_neutral(item, (*path, "[]")) for item in value]
    return str(value) if isinstance(value, Path) else value


def _without_repeats(data: Any) -> Any:
    """Return the section of the data with the held-out share of repeats instead of their number.

    The first repeat is the single held-out run, and more repeats extend a run as more episodes do.
    """
    arguments = data.get("init_args") if isinstance(data, Mapping) else None
    if not isinstance(arguments, Mapping) or not str(data.get("class_path")).startswith("dtrap."):
        return data
    rest = {key: value for key, value in arguments.items() if key != "repeats"}
    if arguments.get("repeats") is not None and rest.get("held_out") is None:
        from ..datamodules.held_out import HELD_OUT

        rest["held_out"] = HELD_OUT
    return {**data, "init_args": rest}


def _training_callbacks(value: Any) -> Any:
    """Return the callbacks that may change a result; None where there are none."""
    callbacks = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return [callback for callback in callbacks if not _measures_only(callback)] or None


def _measures_only(callback: Any) -> bool:
    path = str(callback.get("class_path") if isinstance(callback, Mapping) else callback)
    return path.startswith("dtrap.callbacks.") and path.rpartition(".")[2] in NEUTRAL_CALLBACKS


def _is_neutral(key: str, path: tuple[str, ...]) -> bool:
    return key in NEUTRAL.get(path, ()) or (path == ("trainer",) and key.startswith("enable_"))


def _changes(
    old: object, new: object, path: tuple[str, ...], owner: Any, former: Mapping[str, Any]
) -> Iterator[Change]:
    """Where two values at a path differ; `owner` is the class that has a mapping's keys as arguments, if known."""
    if isinstance(old, list) and isinstance(new, list) and any(isinstance(item, dict) for item in old + new):
        old, new = _numbered(old), _numbered(new)
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            before = former.get(".".join((*path, key)), ABSENT)
            values = old.get(key, before), new.get(key, ABSENT)
            if not _is_default(*values, (*path, key), owner):
                yield from _changes(*values, (*path, key), _owner_below(new, path, key, owner), former)
    elif not _equal(old, new) and not (path[-1:] == ("class_path",) and old != ABSENT != new and _same_class(old, new)):
        yield path, old, new


def _is_default(old: object, new: object, path: tuple[str, ...], owner: Any) -> bool:
    """Whether one of the two values is absent and the other is the default of the owner's argument."""
    if ABSENT not in (old, new):
        return False
    default = _without_neutral(_option(owner, path[-1])[0], path)
    return _equal(default, new if old is ABSENT else old)


def _equal(old: object, new: object) -> bool:
    if same_path(old, new):  # a run folder from before paths were saved as absolute ones
        return True
    return old == new and isinstance(old, bool) == isinstance(new, bool)


def _same_class(old: object, new: object) -> bool:
    # A class that only keeps a former name says in `same_as` which class it stands for.
    first, second = (getattr(found, "same_as", found) for found in (_imported(old), _imported(new)))
    return first is not None and first is second


def _owner_below(values: Mapping[str, Any], path: tuple[str, ...], key: str, owner: Any) -> Any:
    """The class whose arguments are the keys of `values[key]`, None if unknown."""
    if path == ():
        return _section(key)
    if key == "init_args":
        return _imported(values.get("class_path"))
    annotation = _option(owner, key)[1]
    return next(filter(dataclasses.is_dataclass, (annotation, *typing.get_args(annotation))), None)


def owner_of(values: Mapping[str, Any], path: tuple[str, ...]) -> tuple[Any, Any]:
    """Return the class whose argument the option at a path of a config is, and the option's type; None if unknown.

    Args:
        values: A resolved config.
        path: Keys, such as ("model", "tuner", "init_args", "rank").
    """
    owner = None
    for depth, key in enumerate(path[:-1]):
        owner = _owner_below(values, path[:depth], key, owner)
        values = values[key]
    return owner, _option(owner, path[-1])[1]


def _section(name: str) -> Any:
    """The class whose arguments a section of the config holds."""
    from lightning.pytorch import Trainer

    from ..callbacks import StageSwitch
    from ..lightning_modules import FewShotClassifier

    return {"trainer": Trainer, "model": FewShotClassifier, "stage_switch": StageSwitch}.get(name)


def _option(owner: Any, name: str) -> tuple[Any, Any]:
    """Default and type of an argument of a class or function, also of one that is passed on to a base class."""
    for base in getattr(owner, "__mro__", (owner,)):
        try:
            call = base.__init__ if inspect.isclass(base) else base
            parameter = inspect.signature(call, eval_str=True).parameters.get(name)
        except (TypeError, ValueError, NameError):  # no signature, or names that are imported for type checkers only
            continue
        if parameter is not None:
            field = getattr(base, "__dataclass_fields__", {}).get(name)
            if field is not None and field.default_factory is not dataclasses.MISSING:
                return field.default_factory(), parameter.annotation
            default = ABSENT if parameter.default is parameter.empty else parameter.default
            return default, parameter.annotation
    return ABSENT, None


def _imported(path: object) -> Any:
    """The class of a dotted path: imported from dtrap's own packages, otherwise only found where it is loaded."""
    module, _, name = str(path).rpartition(".")
    try:
        if f"{module}.".startswith(IMPORTED):
            return getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    # Not getattr: a package that resolves its names lazily would import.
    return vars(sys.modules[module]).get(name) if module in sys.modules else None


def _numbered(items: list[Any]) -> dict[str, Any]:
    return {str(number): item for number, item in enumerate(items)}


def _shown(value: object) -> str:
    if value is ABSENT:
        return "(absent)"
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return textwrap.shorten(text, SHOWN_CHARACTERS, placeholder=" …")


def name_part(text: str) -> str:
    """Return a text as part of a file name, in lower case; a long one is cut and ends with a hash of the whole."""
    pieces = unicodedata.normalize("NFKC", text).lower().split("/")
    words = [re.sub(r"[^\w.]+", "-", piece).strip("-._") for piece in pieces]
    name = "_".join(word for word in words if word) or "unnamed"
    if len(name.encode()) <= NAME_PART_BYTES:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name.encode()[: NAME_PART_BYTES - 9].decode(errors='ignore')}-{digest}"
