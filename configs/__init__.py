"""The shipped configs: YAML files, and the configs of CoOp's sets, which come from one table."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from ..errors import DtrapError, nearest
from .coop import COOP_CONFIGS

SHIPPED = Path(__file__).parent
SWEEP = "sweep.yaml"  # for wandb, not for --config


def shipped_configs() -> list[str]:
    """Return the names of all shipped configs of a run, those of data sets first, then by folder."""
    files = [
        path.relative_to(SHIPPED).as_posix()
        for path in SHIPPED.rglob("*.yaml")
        if path.parent.name != "studies" and path.name != SWEEP
    ]
    return sorted([*files, *COOP_CONFIGS], key=lambda name: (name.count("/"), name))


def find_config(name: str) -> str:
    """Return the path of a config: a file of that name, relative to the current folder, or else the shipped config.

    Raises:
        DtrapError: There is neither.
    """
    if Path(name).is_file():
        return name
    shipped = _shipped_name(name)
    if shipped not in COOP_CONFIGS:
        return str(SHIPPED / shipped)
    path = Path(_folder().name, shipped)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(COOP_CONFIGS[shipped], encoding="utf-8")
    return str(path)


def config_text(name: str) -> str:
    """Return the content of a shipped config.

    Raises:
        DtrapError: There is no shipped config of that name.
    """
    shipped = _shipped_name(name)
    return COOP_CONFIGS.get(shipped) or (SHIPPED / shipped).read_text(encoding="utf-8")


def shipped_defaults() -> dict[str, Any]:
    """Return the content of defaults.yaml, which is read before every other config."""
    return dict(yaml.safe_load(config_text("defaults.yaml")))


def write_config(content: str) -> str:
    """Write a config for the parser into a folder that ends with the process; return its path."""
    path = Path(_folder().name, f"found-{hashlib.sha256(content.encode()).hexdigest()[:16]}.yaml")
    path.write_text(content, encoding="utf-8")
    return str(path)


def title_of(name: str) -> str:
    """Return the first comment line of a shipped config, which says what it is."""
    return config_text(name).split("\n", 1)[0].removeprefix("#").strip()


def is_shipped(path: str) -> bool:
    """Return whether a path that `find_config` returned is that of a shipped config."""
    return any(Path(path).is_relative_to(folder) for folder in (SHIPPED, _folder().name))


def _shipped_name(name: str) -> str:
    for candidate in (name, f"{name}.yaml"):
        if candidate in COOP_CONFIGS or (SHIPPED / candidate).is_file():
            return candidate
    if Path(name).is_dir():
        raise DtrapError(
            f"config '{name}' is a folder; expected a YAML file or a shipped config. Images are given with "
            f"--data.root {name}, such as after --config folder.yaml."
        )
    stem = Path(name).stem.lower()
    same = [known for known in shipped_configs() if re.sub(r"_\d+shot$", "", Path(known).stem) == stem]
    near = f" Did you mean {' or '.join(repr(known) for known in same)}?" if same else nearest(name, shipped_configs())
    raise DtrapError(
        f"config '{name}' not found: neither a file here ({Path.cwd()}) nor a shipped config.{near} "
        "`dtrap configs` lists the shipped ones."
    )


@cache
def _folder() -> TemporaryDirectory[str]:
    """Return the folder of configs that are written for the parser; it is deleted when the process ends."""
    return TemporaryDirectory(prefix="dtrap-configs-")
