"""The module of a saved adapter, made of its card alone; a card runs nothing and imports nothing of others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier, Objective
from ..lightning_modules.backbones.local_files import missing_files
from ..lightning_modules.parts import rebuild
from ..lightning_modules.saved import PARTS
from ..parsing import read_yaml
from .adapters import CONFIG, AdapterCard, is_exported, is_standalone, load_adapter
from .export import load_exported

_LARGEST_CONFIG = 1 << 20


def find_adapter(path: Path) -> Path:
    """Return the adapter of a path: a file or an exported folder itself, or the only adapter of a run folder.

    Raises:
        DtrapError: The folder has no adapter, or several.
    """
    if not path.is_dir() or is_exported(path):
        return path
    found = sorted(path.glob("*.safetensors")) or sorted(path.glob("adapters/*.safetensors"))
    if not found:
        raise DtrapError(
            f"{path}: no adapters (.safetensors) found. `dtrap fit --protocol.save_adapters true` saves them."
        )
    if len(found) > 1:
        raise DtrapError(f"{path} holds {len(found)} adapters; name one of them, such as {found[0]}.")
    return found[0]


def build_saved(path: Path, card: AdapterCard, files: Mapping[str, str] | None = None) -> FewShotClassifier:
    """Return the module of an adapter or an exported folder, ready to predict.

    Args:
        path: The adapter.
        card: Its card.
        files: Arguments of the backbone that name local files, where these are now.

    Raises:
        DtrapError: A class is not dtrap's, a local file is missing, or the files do not fit.
    """
    if is_standalone(path):
        return load_exported(path, card)
    model = card.model or _model_of_run(path)
    try:
        backbone = _with_files(path, card, model.get("backbone"), files or {})
        template = model.get("template")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # as for a run: a backbone without weights must be the same again
            module = FewShotClassifier(
                rebuild(backbone, PARTS["backbone"], "model.backbone"),
                rebuild(model.get("tuner"), PARTS["tuner"], "model.tuner"),
                _objective(card, model),
                template if isinstance(template, str | list) else None,
            )
    except DtrapError as error:
        remedy = f" `dtrap predict --adapter {path}` takes other classes and files as options."
        raise DtrapError(f"{path}: {error}{'' if 'files=' in str(error) else remedy}") from error
    load_adapter(path, module, card)
    return module


def _objective(card: AdapterCard, model: Mapping[str, Any]) -> Objective:
    if card.logit_scale is not None:
        return Objective(logit_scale=card.logit_scale)
    described = model.get("objective")
    return Objective() if described is None else rebuild(described, Objective, "model.objective")


def _with_files(path: Path, card: AdapterCard, described: Any, files: Mapping[str, str]) -> Any:
    """Return the description of the backbone with the places of its local files."""
    if not isinstance(described, dict) or not isinstance(described.get("init_args") or {}, dict):
        return described  # `rebuild` says what is wrong
    arguments = {**(described.get("init_args") or {}), **{name: str(file) for name, file in files.items()}}
    needed = {name: entry for name, entry in card.files.items() if name not in files}
    missing = missing_files(needed)
    if missing:
        names = ", ".join(
            f"{file.name} (SHA-256 {needed[name].get('sha256', '')[:16]}...)" for name, file in missing.items()
        )
        typed = ", ".join(f"{name!r}: FILE" for name in missing)
        raise DtrapError(f"trained on local files of the backbone that are not here: {names}. Give files={{{typed}}}.")
    return {**described, "init_args": arguments}


def _model_of_run(path: Path) -> Mapping[str, Any]:
    """Return the section `model` of the run's config, for the card of an earlier version that has none."""
    config = next((place / CONFIG for place in (path.parent, path.parent.parent) if (place / CONFIG).is_file()), None)
    if config is None:
        raise DtrapError(
            f"{path}: its card is of an earlier version and does not hold the model, and there is no {CONFIG} of its "
            f"run next to it. Use `dtrap predict --adapter {path} --config FILE` with the config of the run."
        )
    try:
        content = read_yaml(config, _LARGEST_CONFIG)
        model = content["model"]
        if not isinstance(model, dict):
            raise ValueError("model is not a section")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DtrapError(f"{config}: not the config of a run ({str(error)[:200]}).") from error
    return model
