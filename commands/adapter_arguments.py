"""The argument `--adapter`: which adapters a command reads, and the config that makes their models again."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from rich.console import Console

from ..configs import write_config
from ..console import say
from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.tuners import Tuner
from ..protocol.adapters import CONFIG, AdapterCard, check_tuner, is_exported, is_standalone, read_card
from ..protocol.configuration import build_module, build_part, build_trainer_arguments
from ..protocol.export import load_exported
from ..protocol.onnx_graph import GRAPH
from ..protocol.precision import FULL, HALF, canonical, device_of
from ..protocol.processes import on_one_device
from .found import Values, card_precision, values_of_card, values_of_config
from .own_modules import make_importable
from .parser import DtrapCLI
from .plug_ins import words_in_full


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter, its card and the parsed config of its model; adapters of equal configs share the parsed one."""

    path: Path
    card: AdapterCard
    cli: DtrapCLI

    @property
    def config(self) -> Namespace:
        """The parsed config."""
        return self.cli.config

    @property
    def precision(self) -> str:
        """The given precision, otherwise that of the training; 32-true instead of 16-mixed where there is no GPU."""
        given = self.config.trainer.precision
        asked = canonical(card_precision(self.card) if given is None else given)
        device = device_of(vars(self.config.trainer)) if asked == HALF else None
        return FULL if device is not None and device.type == "cpu" else asked

    def trainer_arguments(self) -> dict[str, Any]:
        """Return the Trainer's arguments with the precision, on one device also where the training had several."""
        arguments = on_one_device(build_trainer_arguments(self.config))
        if arguments.get("precision") is not None or not arguments.get("plugins"):
            arguments["precision"] = self.precision
        return arguments

    def build(self) -> FewShotClassifier:
        """Build the module of the config, or load it from a standalone folder."""
        if is_standalone(self.path):
            return load_exported(self.path, self.card)
        if self.card.prompts is not None:  # the card has the sentences of a file that may be gone
            self.config.model.descriptions = self.config.model.random_words = None
        check_tuner(self.path, build_part(Tuner, self.config.model.tuner).name, self.card)
        return build_module(self.config)


def find_adapters(arguments: list[str], command: str, console: Console) -> list[SavedAdapter]:
    """Parse the command line and find its adapters.

    Without `--config` the model is that of the card; for a card of an earlier version it is that of the config.yaml of
    its run, as far as that names nothing but dtrap's own classes. Only `dtrap test` takes several adapters.

    Raises:
        DtrapError: A mistake in the config or the command line, or a folder without adapters or with too many.
    """
    arguments = words_in_full(arguments)
    unused = [word.partition("=")[0] for word in arguments if word.startswith("--data")]
    if unused and command != "test":
        raise DtrapError(
            f"{unused[0]} has no effect on dtrap {command}: the adapter says how images are read. Leave it out."
        )
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-c", nargs="?")
    parser.add_argument("--adapter", nargs="?")
    given, _ = parser.parse_known_args(arguments)
    if given.config or not given.adapter:
        cli = DtrapCLI(arguments, command)
        return [SavedAdapter(path, read_card(path), cli) for path in _paths(Path(cli.config.adapter), command)]
    make_importable(word.rpartition("=")[2] for word in arguments)  # before the card: it may name what is given
    parsed: dict[str, DtrapCLI] = {}
    saved = []
    for path in _paths(Path(given.adapter), command):
        card = read_card(path)
        values = _found_values(path, card, arguments, command, console)
        key = json.dumps(values, sort_keys=True)
        if key not in parsed:
            parsed[key] = DtrapCLI(["--config", _written(path, values), *arguments], command)
        saved.append(SavedAdapter(path, card, parsed[key]))
    return saved


def _written(path: Path, values: Values) -> str:
    """Write the options for the parser; return the path of the file."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # of a path, which YAML cannot hold
        raise DtrapError(
            f"{path}: its card has a text that is not UTF-8. Give the data or the backbone's files, such as "
            "--data.root FOLDER."
        ) from error
    return write_config(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _paths(path: Path, command: str) -> list[Path]:
    if not path.is_dir() or is_exported(path):
        return [path]
    found = sorted(path.glob("*.safetensors")) or sorted(path.glob("adapters/*.safetensors"))
    if not found and (path / GRAPH).is_file():
        raise DtrapError(
            f"{path}: holds an ONNX graph, which onnxruntime runs (see its README.md). dtrap {command} takes the "
            "adapter that it was made from."
        )
    if not found:
        raise DtrapError(
            f"{path}: no adapters (.safetensors) found. `dtrap fit --protocol.save_adapters true` saves them."
        )
    if len(found) > 1 and command != "test":
        raise DtrapError(f"{path} holds {len(found)} adapters; name the one to {command} with.")
    return found


def _found_values(path: Path, card: AdapterCard, words: Sequence[str], command: str, console: Console) -> Values:
    """Return the options of the card; those of the run's config for what an old card does not have."""
    with_data, standalone = command == "test", is_standalone(path)
    values: Values = {}
    if card.model and not standalone:
        values = values_of_card(path, card, words, with_data=with_data)
    elif card.model and with_data:
        values = values_of_card(path, card, words, with_data=True)
        del values["model"]
    if (card.model or standalone) and (card.data is not None or not with_data):
        return values
    config = _saved_config(path, card)
    if config is None:
        if card.model or standalone:
            return values
        raise DtrapError(
            f"{path}: its card is of an earlier version and does not hold the model, and there is no {CONFIG} of its "
            "run next to it. Give the config of the run: --config FILE."
        )
    found, ignored = values_of_config(config, words, with_data=with_data)
    if ignored:
        line = f"{config} was found, not given: ignored {', '.join(ignored)}"
        say(console, f"{line} (--config {shlex.quote(str(config))} runs what it names).")
    if standalone:
        found.pop("model", None)
    return {**found, **values}


def _saved_config(path: Path, card: AdapterCard) -> Path | None:
    """Return the config of an adapter's run: next to it or in the folder above."""
    places = [path] if path.is_dir() else [path.parent, path.parent.parent]
    names = (f"config.{card.method}.yaml", CONFIG)
    return next((place / name for place in places for name in names if (place / name).is_file()), None)
