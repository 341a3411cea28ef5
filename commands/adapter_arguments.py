"""The argument `--adapter`: which adapters a command reads, and the config of the run that saved them."""

from __future__ import annotations

import argparse
from pathlib import Path

from jsonargparse import Namespace

from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.tuners import Tuner
from ..protocol.adapters import CONFIG, AdapterCard, check_tuner, is_exported, is_standalone, read_card
from ..protocol.configuration import build_module, build_part
from ..protocol.export import load_exported
from .parser import DtrapCLI


def find_adapters(arguments: list[str], command: str) -> tuple[DtrapCLI, list[Path]]:
    """Parse the command line and find its adapters; without `--config`, the config of their run is read.

    Predictions of a standalone checkpoint need no config. Only `dtrap test` takes several adapters.

    Raises:
        DtrapError: A mistake in the config or the command line, or a folder without adapters or with too many.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-c", nargs="?")
    parser.add_argument("--adapter", nargs="?")
    given, _ = parser.parse_known_args(arguments)
    if given.adapter and not given.config:
        saved = _saved_config(Path(given.adapter), command)
        arguments = ["--config", str(saved), *arguments] if saved else arguments
    cli = DtrapCLI(arguments, command)
    path = Path(cli.config.adapter)
    if not path.is_dir() or is_exported(path):
        return cli, [path]
    found = sorted(path.glob("*.safetensors")) or sorted(path.glob("adapters/*.safetensors"))
    if not found:
        raise DtrapError(
            f"{path}: no adapters (.safetensors) found. `dtrap fit --protocol.save_adapters true` saves them."
        )
    if len(found) > 1 and command != "test":
        raise DtrapError(f"{path} holds {len(found)} adapters; name the one to {command} with.")
    return cli, found


def _saved_config(path: Path, command: str) -> Path | None:
    if command == "predict" and is_standalone(path):
        return None
    names = [CONFIG]
    if path.is_file() or is_exported(path):
        names.insert(0, f"config.{read_card(path).method}.yaml")
    places = [path, path.parent, path.parent.parent] if path.is_dir() else [path.parent, path.parent.parent]
    return next((place / name for place in places for name in names if (place / name).is_file()), None)


def build_adapted(config: Namespace, adapter: Path, card: AdapterCard) -> FewShotClassifier:
    """Build the module of the config, or load it from a standalone folder."""
    if is_standalone(adapter):
        return load_exported(adapter, card)
    if card.prompts is not None:  # the card has the sentences of a file that may be gone
        config.model.descriptions = None
    check_tuner(adapter, build_part(Tuner, config.model.tuner).name, card)
    return build_module(config)
