"""What a command takes from a card or a config that it found: plain values and dtrap's own classes, nothing to run.

A config that is given with `--config` is a program of its author: it names classes, and they are imported. A saved
adapter, and the config.yaml next to it, may come from anybody.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError
from ..lightning_modules import Objective
from ..lightning_modules.backbones.local_files import missing_files
from ..lightning_modules.parts import PACKAGES, ForeignClass, class_path, own_part
from ..lightning_modules.saved import PARTS
from ..parsing import read_yaml
from ..protocol.adapters import AdapterCard
from ..protocol.precision import FORMER

DATA_PACKAGES = ("dtrap.datamodules", "dtrap.datamodules.coop")
# Sections and options of a run's config that say how it was trained, which no command on an adapter needs.
UNUSED = ("trainer", "stage_switch", "protocol", "seed_everything")
UNUSED_OF_MODEL = (
    "learning_rate",
    "optimizer",
    "lr_scheduler",
    "plain_views",
    "start_seed",
    "descriptions",
    "random_words",
    "final_rate",
    "class_weights",
)
PLAIN_OF_MODEL = ("template", "image_chunk", "text_chunk")
PRECISIONS = ("16-true", "16-mixed", "bf16-true", "bf16-mixed", "32-true", "64-true", "16", "bf16", "32", "64")
LARGEST_CONFIG = 1 << 20

Values = dict[str, Any]


def values_of_card(path: Path, card: AdapterCard, words: Sequence[str], *, with_data: bool) -> Values:
    """Return the options that make the model of a card again, and its data.

    Args:
        path: The adapter.
        card: Its card.
        words: The command line; a class or file given there replaces the card's.
        with_data: Whether the command needs the data.

    Raises:
        DtrapError: A class is not dtrap's, a local file is missing, or a value is not plain.
    """
    model = {name: card.model.get(name) for name in ("backbone", "tuner")}
    remedy = "If you trust that class, give it: --{option} {path}"
    try:
        found: Values = {"model": _model(model, words, remedy)}
        template = card.model.get("template")
        if template is not None:
            found["model"]["template"] = _plain("model.template", template)
        found["model"]["objective"] = {
            "class_path": class_path(Objective),
            "init_args": {} if card.logit_scale is None else {"logit_scale": card.logit_scale},
        }
        if with_data and card.data is not None:
            found |= _data(card.data, words, remedy)
    except DtrapError as error:
        raise DtrapError(f"{path}: {error}") from error
    _replace_files(path, card, found["model"].get("backbone"))
    if card.precision in PRECISIONS:
        found["trainer"] = {"precision": card.precision}
    return found


def card_precision(card: AdapterCard) -> str:
    """Return the precision of an adapter's training; that of all trainings before cards said it if it does not."""
    return str(card.precision) if card.precision in PRECISIONS else FORMER


def values_of_config(path: Path, words: Sequence[str], *, with_data: bool) -> tuple[Values, list[str]]:
    """Return the options of a found config that a command may use, and the names of those that could run code.

    Raises:
        DtrapError: Something in it is neither plain nor dtrap's; the message says how to give the config.
    """
    give = f"To use everything in it, which runs what it names, give it: --config {shlex.quote(str(path))}"
    try:
        content = read_yaml(path, LARGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise DtrapError(f"{path}: not readable as YAML ({str(error)[:300]}).") from error
    try:
        sections = _mapping("the config", content)
        _check_known(sections, ("model", "data", *UNUSED), "")
        model = _mapping("model", sections.get("model") or {})
        _check_known(model, (*PARTS, *PLAIN_OF_MODEL, *UNUSED_OF_MODEL), "model.")
        found: Values = {"model": _model(model, words, "")}
        for name in PLAIN_OF_MODEL:
            if model.get(name) is not None:
                found["model"][name] = _plain(f"model.{name}", model[name])
        if with_data and sections.get("data") is not None:
            found |= _data(sections["data"], words, "")
    except DtrapError as error:
        raise DtrapError(f"{path} (found, not given): {error} {give}.") from error
    unused = {name: sections.get(name) for name in UNUSED} | {
        f"model.{name}": model.get(name) for name in ("optimizer", "lr_scheduler")
    }
    return found, sorted(name for key, value in unused.items() for name in _could_run(key, value))


def _model(model: Mapping[str, Any], words: Sequence[str], remedy: str) -> Values:
    found: Values = {}
    for name, base in PARTS.items():
        if model.get(name) is not None:
            part = _own_part(model[name], base, f"model.{name}", words, PACKAGES, remedy)
            found |= {} if part is None else {name: part}
    return found


def _data(data: Any, words: Sequence[str], remedy: str) -> Values:
    part = _own_part(data, FewShotDataModule, "data", words, DATA_PACKAGES, remedy)
    return {} if part is None else {"data": part}


def _own_part(
    described: Any, base: type, option: str, words: Sequence[str], packages: Sequence[str], remedy: str
) -> Values | None:
    """Return a part; of a class that the user gives, the arguments; None if the user gives another class."""
    path, given = _given(words, option), []
    if path is not None:
        named = described.get("class_path") if isinstance(described, dict) else described
        if named != path and not str(named).endswith(f".{path}"):
            return None
        if isinstance(named, str) and named == path:
            try:
                given = [resolve_name(path)]  # the user named it on the command line
            except (ImportError, AttributeError, ValueError):
                return None  # the parser says what is wrong with it
    try:
        part = own_part(described, base, option, given=given, packages=packages)
        for name in list(part["init_args"]):  # what the command line says instead
            if any(_given(words, f"{option}.{between}{name}") is not None for between in ("", "init_args.")):
                del part["init_args"][name]
        return part
    except ForeignClass as error:
        message = f"{error.option} is {error.shown}, which is not one of dtrap's classes, so it is not imported."
        typed = remedy.format(option=error.option, path=shlex.quote(str(error.path)[:200]))
        raise DtrapError(f"{message} {typed}.".removesuffix(" .")) from error


def _given(words: Sequence[str], option: str) -> str | None:
    """Return the value of an option on the command line, the last one; None if it is not given."""
    names = (f"--{option}", f"--{option}.class_path")
    found = [value for word, value in pairwise([*words, ""]) if word in names]
    found += [word.partition("=")[2] for word in words if word.startswith(tuple(f"{name}=" for name in names))]
    return found[-1] if found else None


def _replace_files(path: Path, card: AdapterCard, backbone: Any) -> None:
    """Keep a local file of the backbone where it is still there; ask for one that is not, and was not given.

    Raises:
        DtrapError: Files are missing; the message has the options.
    """
    if backbone is None:
        return
    odd = [name for name in card.files if not name.isidentifier()]
    if odd:
        raise DtrapError(f"{path}: files has {repr(odd[0])[:80]}, which is no argument of its backbone.")
    # The others are given on the command line.
    needed = {name: entry for name, entry in card.files.items() if name in backbone["init_args"]}
    missing = missing_files(needed)
    if missing:
        names = ", ".join(
            f"{file.name} (SHA-256 {needed[name].get('sha256', '')[:16]}...)" for name, file in missing.items()
        )
        options = " ".join(f"--model.backbone.{name} FILE" for name in missing)
        raise DtrapError(
            f"{path}: trained on local files of the backbone that are not here: {names}. Give them: {options}."
        )


def _check_known(values: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    odd = [str(name) for name in values if name not in known]
    if odd:
        raise DtrapError(f"{prefix}{odd[0][:80]} is not an option that a found config may set.")


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DtrapError(f"{name} is {repr(value)[:80]}; expected names with values.")
    return value


def _plain(option: str, value: Any) -> Any:
    """Return a number, a text or a list of texts; raise a DtrapError for anything else."""
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if texts or isinstance(value, str | int):
        return value
    raise DtrapError(f"{option} is {repr(value)[:80]}; expected a plain value.")


def _could_run(name: str, value: Any) -> list[str]:
    """Return the names of the options below a value that name classes or functions."""
    if isinstance(value, Mapping) and "class_path" not in value:
        return [found for key, item in value.items() for found in _could_run(f"{name}.{key}", item)]
    named = isinstance(value, list | Mapping) or (isinstance(value, str) and "." in value and "/" not in value)
    return [name] if value and named else []
