"""Describe a backbone for another machine: its arguments, and the checksums of the local files that they name."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ..parts import Description, describe
from .base import Backbone
from .checksums import kept_sha256

Files = dict[str, dict[str, str]]
ASSETS = Path(__file__).parents[2] / "assets"
# Files of a model folder that decide what the model is.
_MODEL_FILES = (".json", ".safetensors", ".txt", ".model")

_known: WeakKeyDictionary[Backbone, Files] = WeakKeyDictionary()


def local_files(backbone: Backbone) -> Files:
    """Return `path` and `sha256` of the files and folders by the name of the argument.

    Published and shipped files are not among them. They are read once for a backbone: every episode of a run saves an
    adapter of the same files.
    """
    if backbone not in _known:
        found = _paths(backbone)
        _known[backbone] = {name: {"path": str(path), "sha256": checksum(path)} for name, path in found.items()}
    return _known[backbone]


def describe_backbone(backbone: Backbone) -> tuple[Description, Files]:
    """Return class and arguments of a backbone, with absolute paths, and its local files."""
    described, files = describe(backbone), local_files(backbone)
    described["init_args"] |= {name: file["path"] for name, file in files.items()}
    described["init_args"].pop("cache_dir", None)  # a place on this machine
    return described, files


def missing_files(files: Files) -> dict[str, Path]:
    """Return the paths of those files, by argument, that are not there with the same content."""
    paths = {name: Path(entry.get("path", "")) for name, entry in files.items()}
    return {
        name: path
        for name, path in paths.items()
        if not (path.is_file() or path.is_dir()) or checksum(path) != files[name].get("sha256")
    }


def is_same(backbone: Backbone, identifier: str, files: Files) -> bool:
    """Return whether a backbone has the weights of a saved one; its local files may have other names."""
    if backbone.identifier == identifier:
        return True
    saved, here = ({name: e.get("sha256") for name, e in each.items()} for each in (files, local_files(backbone)))
    return bool(saved) and saved == here


def _paths(backbone: Backbone) -> dict[str, Path]:
    arguments = backbone.given_arguments
    found: dict[str, Path | None] = {}
    # By name, since importing both libraries takes seconds.
    kinds = {each.__name__ for each in type(backbone).__mro__ if each.__module__.startswith("dtrap.")}
    if "OpenCLIP" in kinds and arguments.keys() >= {"name", "pretrained", "tokenizer"}:
        from .architectures import FOLDER, OWN
        from .open_clip import find_architecture

        architecture = find_architecture(arguments["name"], arguments.get("cache_dir"))
        tags, weights = architecture.tags, arguments["pretrained"]
        published = weights is not None and weights.lower().replace("-", "_") in tags
        published = published or (architecture.files is not None and weights in OWN)
        name = arguments["name"].removeprefix(FOLDER)
        found["name"] = _existing(name) if Path(name).expanduser().is_dir() else _existing(name, ".json")
        found["pretrained"] = None if published else _existing(weights)
        found["tokenizer"] = _existing(arguments["tokenizer"])
    elif "Transformers" in kinds:
        found["name"] = _existing(arguments.get("name"))
    return {name: path for name, path in found.items() if path is not None}


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, or of the model files of a folder with their names."""
    # open_clip's layout has the only weights that may be a torch file; elsewhere such a file is not read.
    kinds = _MODEL_FILES + ((".bin",) if (path / "open_clip_config.json").is_file() else ())
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in kinds and f.is_file())
    sums = [kept_sha256(file) for file in files]
    if path.is_file():
        return sums[0]
    named = "".join(f"{file.name}:{digest}\n" for file, digest in zip(files, sums, strict=True))
    return hashlib.sha256(named.encode("utf-8", "surrogateescape")).hexdigest()


def _existing(value: Any, ending: str = "") -> Path | None:
    if value is None:
        return None
    path = Path(str(value)).expanduser()
    if not str(value).endswith(ending) or not path.exists() or path.resolve().is_relative_to(ASSETS.resolve()):
        return None
    return path.absolute()
