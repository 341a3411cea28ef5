"""The configs that a command line gives: found, readable, and in an order in which every option has an effect."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from ..configs import find_config, is_shipped
from ..errors import DtrapError, expected_one_of
from ..parsing import parse_yaml, read_yaml
from .agent_words import SECTIONS, agent_words
from .own_modules import make_importable, texts_in
from .plug_ins import values_in_full, words_in_full
from .predict_options import OPTIONS as PREDICT_OPTIONS

CONFIG_OPTIONS = ("--config", "-c")
OPTIONS = ("seed_everything", "adapter", "output", "form", *PREDICT_OPTIONS)


def find_configs(arguments: list[str]) -> list[str]:
    """Replace every config's name by the path of its file.

    Raises:
        DtrapError: A config is not found, not readable or has unknown sections, or an option of the data set stands
            before the config that chooses it.
    """
    words: list[str] = []
    for word in words_in_full(agent_words(arguments)):
        words += word.split("=", 1) if word.startswith(("--config=", "-c=")) else [word]
    data_chosen = False
    named, folders = [word.rpartition("=")[2] for word in words], []
    for place, (option, word) in enumerate(pairwise(["", *words])):
        _check_regular(word)
        if option in CONFIG_OPTIONS:
            words[place] = find_config(word)
            content = _sections(words[place], word)
            if not is_shipped(words[place]):  # a config that was found is written to a folder of ours, too
                named += texts_in(content)
                folders.append(Path(words[place]).parent)
            _check_order(words[: place - 1], word, content, data_chosen=data_chosen)
            data_chosen = data_chosen or _chooses_data(content)
        elif not option.startswith("-") and re.match(r"-[a-z]{2}", word):  # argparse reads -config as -c onfig
            raise DtrapError(f"{word}: an option begins with two dashes. Did you mean -{word}?")
    make_importable(named, folders)
    return words


def bound_yaml() -> None:
    """Let jsonargparse refuse values and files of an option, not only configs, whose aliases stand for too many values.

    It also lets a config name a plug-in shortly.

    Raises:
        DtrapError: From the parser; its own loader would take hours and all memory.
    """
    load: Any = get_loader("yaml")
    if not hasattr(load, "func"):  # not bound yet
        set_loader("yaml", partial(_load_bounded, load), (yaml.YAMLError,))


def _load_bounded(load: Callable[[str], Any], stream: str) -> Any:
    if "&" in stream and "*" in stream:
        try:
            parse_yaml(stream)
        except ValueError as error:
            raise DtrapError(f"not readable as YAML ({error}): {stream[:60]!r}. Write the values out.") from error
    return values_in_full(load(stream))


def _check_regular(word: str) -> None:
    """Raise a DtrapError for an option's value that is a FIFO or a device, which would be read without end."""
    path = word.partition("=")[2] if word.startswith("--") else word
    if "\0" not in path and os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise DtrapError(f"{path} is a FIFO, device or socket; expected a file or folder. Give another path.")


def _sections(path: str, name: str) -> dict[str, Any]:
    """Return the content of a config after checking that it has the sections of a run."""
    try:
        content = read_yaml(Path(path))
    except (OSError, ValueError) as error:
        lines = " ".join(str(error).split())
        raise DtrapError(f"{path}: not readable as YAML ({lines[:300]}). Fix that line.") from error
    if content is None:
        raise DtrapError(f"{path} is empty; expected sections such as `data:` and `model:`. Leave out --config {name}.")
    if not isinstance(content, dict):
        raise DtrapError(f"{path}: expected sections such as `data:` and `model:`, found {str(content)[:60]!r}.")
    for section, values in content.items():
        if section not in (*SECTIONS, *OPTIONS):
            raise DtrapError(f"{path}: unknown section '{section}'; {expected_one_of(section, SECTIONS)}")
        if section in SECTIONS and section != "data" and not isinstance(values, dict):
            found = "nothing" if values is None else repr(values)[:60]
            raise DtrapError(f"{path}: the section `{section}:` holds {found}; expected options such as `name: value`.")
    return content


def _check_order(before: list[str], name: str, content: dict[str, Any], *, data_chosen: bool) -> None:
    """Warn of an option before a config that sets it too; raise a DtrapError if it has no data set to belong to."""
    for word in before:
        option = word.partition("=")[0]
        if not option.startswith("--") or option in CONFIG_OPTIONS:
            continue
        parts = [part for part in option[2:].split(".") if part != "init_args"]
        order = f"Options are read from left to right; give it after: --config {name} {option} VALUE"
        if parts[0] == "data" and _chooses_data(content) and not data_chosen:
            raise DtrapError(f"{option} is given before --config {name}, which chooses the data set. {order}")
        if _has(content, parts):
            warnings.warn(f"{option} has no effect: --config {name} after it sets it, too. {order}", stacklevel=2)


def _chooses_data(content: dict[str, Any]) -> bool:
    data = content.get("data")
    return isinstance(data, str) or (isinstance(data, dict) and "class_path" in data)


def _has(content: Any, parts: list[str]) -> bool:
    """Return whether a config sets an option, or the class that the option belongs to."""
    for part in parts:
        if not isinstance(content, dict):
            return False
        content = content.get("init_args", content)
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True
