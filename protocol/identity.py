"""What makes two configs the same experiment, and the default name of a run folder."""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
# What is done about a fault in the data cannot change an episode that had none, and the fingerprint of the data
# files says which there are: whoever follows an error's advice to skip goes on with the rows so far.
# What a subset file holds counts as part of the fingerprint too.
NEUTRAL_DATA_OPTIONS = {"root", "query_root", "num_workers", "bad_images", "small_classes", "subset"}
NEUTRAL = {
    (): {"config"},
    ("data",): NEUTRAL_DATA_OPTIONS,
    ("data", "init_args"): NEUTRAL_DATA_OPTIONS,
    ("model",): {"image_chunk", "text_chunk"},
    ("model", "init_args"): {"image_chunk", "text_chunk"},
    ("protocol",): {"episodes", "folder", "overwrite", "compare", "pictures", "save_adapters", "checkpoint_every"},
    ("trainer",): NEUTRAL_TRAINER_FLAGS,
}
NAME_PART_BYTES = 48
SHOWN_CHARACTERS = 80
ABSENT = object()


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Part of a resolved config that decides the numbers of a run; rows of two identities never mix.

    Left out: where the data lie, what is done about faults in them, workers, device and display flags of the Trainer,
    loggers, the chunks of the towers, the number of episodes, what is done with the results, and empty sections. An
    unknown key counts. Tuples become lists and paths text, so that a config read back from a file is the same.
    """
    return _without_neutral(config, ())


def difference(old: object, new: object) -> list[str]:
    """Lines such as `model.objective.init_args.relation_weight: 3.0 in the folder, 5.0 now`, by dotted key.

    Args:
        old: identity of the run in the folder.
        new: identity of the run that is asked for.
    """
    return _differences(old, new, ())


def default_folder_name(
    *,
    dataset: str,
    backbone: str,
    tuner: str,
    method: str,
    seed: int,
    way: int | None = None,
    shot: int | None = None,
) -> str:
    """Folder name such as `isic_5way_5shot_vit-b-16-quickgelu_openai_lora_svl-ra_seed1`.

    Args:
        dataset: title of the data set or name of the user's folder.
        backbone: name and tag, separated by `/`.
        tuner: name of the tuner.
        method: name of the method, such as `SVL + RA`.
        seed: seed of the episodes.
        way: classes per episode; None where an episode has all classes.
        shot: support images per class; None where an episode has all images.

    Returns:
        At most 255 bytes of letters, digits and `.`, `-`, `_`. A cut part ends with a hash of the whole.
    """
    parts = [_name_part(dataset)]
    if way is not None:
        parts.append(f"{way}way")
    if shot is not None:
        parts.append(f"{shot}shot")
    return "_".join([*parts, _name_part(backbone), _name_part(tuner), _name_part(method), f"seed{seed}"])


def _without_neutral(value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        kept = {str(key): item for key, item in value.items() if not _is_neutral(str(key), path)}
        cleaned = {key: _without_neutral(item, (*path, key)) for key, item in kept.items()}
        return {key: item for key, item in cleaned.items() if item != {}}
    if isinstance(value, list | tuple):
        return [_without_neutral(item, (*path, "[]")) for item in value]
    return str(value) if isinstance(value, Path) else value


def _is_neutral(key: str, path: tuple[str, ...]) -> bool:
    return key in NEUTRAL.get(path, ()) or (path == ("trainer",) and key.startswith("enable_"))


def _differences(old: object, new: object, path: tuple[str, ...]) -> list[str]:
    if isinstance(old, list) and isinstance(new, list) and any(isinstance(item, dict) for item in old + new):
        old, new = _numbered(old), _numbered(new)
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [line for key in keys for line in _differences(old.get(key, ABSENT), new.get(key, ABSENT), (*path, key))]
    if old == new and isinstance(old, bool) == isinstance(new, bool):
        return []
    return [f"{'.'.join(path)}: {_shown(old)} in the folder, {_shown(new)} now"]


def _numbered(items: list[Any]) -> dict[str, Any]:
    return {str(number): item for number, item in enumerate(items)}


def _shown(value: object) -> str:
    if value is ABSENT:
        return "(absent)"
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return textwrap.shorten(text, SHOWN_CHARACTERS, placeholder=" …")


def _name_part(text: str) -> str:
    words = [re.sub(r"[^\w.]+", "-", piece).strip("-._") for piece in _folded(text).split("/")]
    name = "_".join(word for word in words if word) or "unnamed"
    if len(name.encode()) <= NAME_PART_BYTES:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name.encode()[: NAME_PART_BYTES - 9].decode(errors='ignore')}-{digest}"


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()
