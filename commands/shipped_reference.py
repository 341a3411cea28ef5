"""What the shipped configs of a command line say together: the settings that a run folder's name is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..configs import SHIPPED, is_shipped, shipped_defaults
from ..parsing import read_yaml
from ..protocol.configuration import Reference
from ..protocol.identity import difference, identity
from .given_configs import CONFIG_OPTIONS


def shipped_reference(words: Sequence[str]) -> Reference:
    """Return what the shipped configs among the words of a command line set, and which overlays have an effect.

    Args:
        words: The words, each config by its path, see `find_configs`.
    """
    values, overlays = shipped_defaults(), []
    for option, word in pairwise(["", *words]):
        if option not in CONFIG_OPTIONS or not is_shipped(word):
            continue
        merged = _merged(values, read_yaml(Path(word)))
        name = shipped_name(word)
        if "/" in name and not name.startswith("coop/") and difference(identity(values), identity(merged)):
            overlays.append(name)
        values = merged
    return Reference(values, overlays)


def shipped_name(path: str) -> str:
    """Return the name of a shipped config, such as `tuners/coop.yaml`."""
    if Path(path).is_relative_to(SHIPPED):
        return Path(path).relative_to(SHIPPED).as_posix()
    return Path(*Path(path).parts[-2:]).as_posix() if Path(path).parent.name == "coop" else Path(path).name


def _merged(first: Mapping[str, Any], second: Any) -> dict[str, Any]:
    """Lay one config over another; another class drops the arguments of the former one."""
    merged = dict(first)
    for key, value in (second or {}).items():
        known = merged.get(key)
        if not isinstance(value, Mapping) or not isinstance(known, Mapping):
            merged[key] = value
        elif "class_path" in value and value["class_path"] != known.get("class_path"):
            merged[key] = dict(value)
        else:
            merged[key] = _merged(known, value)
    return merged
