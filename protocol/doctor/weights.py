"""Which weights are on this machine, and whether a file is the one that was published."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DtrapError
from ...lightning_modules.backbones.checksums import kept_sha256
from ...lightning_modules.backbones.hub import without_downloads


@dataclass(frozen=True)
class WeightFiles:
    """The files of a backbone's weights.

    Attributes:
        paths: Where they are; empty if they are not on this machine.
        published: Whether they are the published files; None where nothing tells.
        remark: Why they are not found, or what the last attribute rests on.
    """

    paths: tuple[Path, ...]
    published: bool | None
    remark: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)


def find_weight_files(class_path: str, arguments: Mapping[str, Any]) -> WeightFiles:
    """Return the weight files of a backbone; nothing is downloaded.

    Args:
        class_path: Name of its class, `OpenCLIP` or `Transformers`.
        arguments: Arguments of the class.
    """
    kind = class_path.rpartition(".")[2]
    try:
        with without_downloads("dtrap doctor downloads nothing; a run does"):
            if kind == "OpenCLIP":
                return _of_open_clip(arguments)
            if kind == "Transformers":
                return _of_transformers(arguments)
    except DtrapError as error:
        return WeightFiles((), None, str(error))
    return WeightFiles((), None, f"{class_path} is not a class of dtrap; its weights are not known here.")


def _of_open_clip(arguments: Mapping[str, Any]) -> WeightFiles:
    from ...lightning_modules.backbones.open_clip import ASSETS, OpenCLIP, find_architecture, find_weights

    given = _complete(OpenCLIP, arguments)
    architecture = find_architecture(given["name"], given["cache_dir"])
    weights = find_weights(architecture, given["pretrained"], given["cache_dir"])
    if weights.path is None:
        return WeightFiles((), None, "random weights")
    if weights.path.is_relative_to(ASSETS):
        return WeightFiles((weights.path,), None, "comes with dtrap")
    if weights.published is not None and kept_sha256(weights.path) in weights.published["url"]:
        return WeightFiles((weights.path,), True, "the checksum that its authors published")
    return _compared((weights.path,))


def _of_transformers(arguments: Mapping[str, Any]) -> WeightFiles:
    from ...lightning_modules.backbones.transformers import Transformers, find_files, weight_files

    given = _complete(Transformers, arguments)
    if given["random_weights"]:
        return WeightFiles((), None, "random weights")
    return _compared(tuple(weight_files(find_files(given["name"], given["cache_dir"]))))


def _complete(component: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with the defaults of the class."""
    parameters = inspect.signature(component).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters} | dict(arguments)


def _compared(paths: tuple[Path, ...]) -> WeightFiles:
    """Compare files of the hub's cache with their names there, which are checksums; others are somebody's own."""
    blobs = [path.resolve().name if path.is_symlink() else "" for path in paths]
    if any(len(name) != 64 for name in blobs):
        sums = ", ".join(kept_sha256(path)[:16] for path in paths)
        return WeightFiles(paths, None, f"a file of your own, SHA-256 {sums}…")
    damaged = [path for path, name in zip(paths, blobs, strict=True) if kept_sha256(path) != name]
    if damaged:
        return WeightFiles(paths, False, f"differs from the hub's checksum. Delete it: rm {damaged[0].resolve()}")
    return WeightFiles(paths, True, "the hub's checksum")
