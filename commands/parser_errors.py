"""Short messages for jsonargparse's errors, with the nearest valid key or value."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import ArgumentParser

from ..configs import is_shipped, shipped_configs
from ..datamodules.few_shot import FewShotDataModule
from ..errors import expected_one_of, nearest
from ..keywords import accepted_keywords
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.backbones import Backbone
from ..lightning_modules.tuners import Tuner

_NOISE = re.compile(
    r"Does not validate against any of|Subtypes:|Errors:$|Expected a <class 'NoneType'>|Given value|^$|"
    r"Expected a path but .* either not accessible or invalid"
)
_MOST_LINES = 7
# Base class of the classes that a section can name.
_BASES: dict[str, type] = {"model.tuner": Tuner, "model.backbone": Backbone, "data": FewShotDataModule}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "a mapping such as '{key: value}'",
    "list": "a list such as '[a, b]'",
    "collections.abc.Sequence": "a list such as '[a, b]'",
}


def explain(error: Exception, parser: ArgumentParser, files: Sequence[str] = ()) -> str:
    """Return a message of at most eight lines for a mistake on the command line or in a config.

    jsonargparse has no structured errors, so its text is searched. A kind that is not known here keeps that text, less
    the lines that only repeat types.

    Args:
        error: The parser's error.
        parser: The parser, for the valid keys.
        files: The configs that were read; the message names the last one with the key.
    """
    text = str(error)
    found = re.search(r'Parser key "([^"]*)"', text)
    key = found.group(1) if found else ""
    for pattern, message_of in _KINDS:
        match = re.search(pattern, text, re.DOTALL)
        if match:
            known = message_of(match, text, key, parser)
            return known + _place(known.partition(": ")[0].rpartition(".")[2], files)
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    kept = list(dict.fromkeys(line for line in lines if not _NOISE.search(line)))
    kept = [line for line in kept if not line.startswith("Parser key")] or lines[:1]
    message = [f"{key}: {kept[0]}" if key else kept[0], *kept[1:_MOST_LINES]]
    value = re.search(r"Given value: (.*)", text)
    if value and "NestedArg" not in value.group(1):
        message.append(f"Found: {value.group(1)[:120]}")
    return "\n".join(line[:300] for line in message)


def _place(name: str, files: Sequence[str]) -> str:
    """Return a sentence with the config that has the key, except for shipped configs."""
    line = re.compile(rf"^\s*['\"]?{re.escape(name)}['\"]?\s*:", re.MULTILINE)
    holders = [path for path in files if not is_shipped(path) and line.search(Path(path).read_text(encoding="utf-8"))]
    return f" See {holders[-1]}." if holders else ""


def _unknown_option(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    name = match.group(1)
    class_path = re.search(r"given class_path '([^']*)'", text)
    owner: Any = _import(class_path.group(1)) if class_path else None
    valid = accepted_keywords(owner) if owner else []
    shown = f" {owner.__name__} accepts: {', '.join(valid)}." if valid else ""
    return f"{key}.{name}: unknown option.{nearest(name, valid)}{shown}".removeprefix(".")


def _group_option(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    group, name = match.group(1), match.group(2)
    keys = [known[len(group) + 1 :] for known in _keys(parser) if known.startswith(f"{group}.")]
    return f"{group}.{name}: unknown option.{nearest(name, keys)}"


def _unrecognized(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    words = match.group(1).split()
    name = words[0].partition("=")[0]
    if not name.startswith("-"):
        return (
            f"'{name}': expected options such as --config isic_5shot.yaml, each with its value. "
            "Values that contain spaces need quotes."
        )
    valid = [f"--{known}" for known in _keys(parser)]
    return f"{name}: unknown option.{nearest(name, valid)} `{parser.prog} --help` lists all options."


def _no_attribute(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    module, name = match.group(1), match.group(2)
    package = _import(module)
    # dir: a package that resolves its names lazily does not hold them yet.
    classes = [each for each in dir(package) if inspect.isclass(getattr(package, each, None))]
    return f"{key}: {module} has no class {name}.{nearest(name, classes)}"


def _no_class(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    name = match.group(1).strip()
    classes = [class_.__name__ for class_ in _subclasses(_BASES.get(key))]
    listed = f" Known: {', '.join(classes)}." if classes else ""
    return f"{key}: unknown class '{name}'.{nearest(name, classes)} Expected a class name or path.{listed}"


def _required(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    names = [f"{key}.{name}" if key else name for name in match.group(1).strip().split(", ")]
    if names == ["data"]:
        sets = ", ".join(name for name in shipped_configs() if "/" not in name and name != "defaults.yaml")
        return f"no data set chosen. Give the config of one with --config NAME; shipped: {sets}."
    return f"missing option: give {' and '.join('--' + name for name in names)}, or set it in a config."


def _literal(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    choices = ",".join(re.findall(r"Literal\[([^\]]*)\]", text)).split(",")
    options = list(dict.fromkeys(choice.strip(" '") for choice in choices))
    name, value = _key_and_value(text)
    return f"{name}: found '{value}', {expected_one_of(value, options)}"


def _wrong_type(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    kinds = dict.fromkeys(re.findall(r"Expected a <class '([\w.]+)'>", text))
    expected = " or ".join(_TYPES.get(kind, kind) for kind in kinds if kind != "NoneType")
    name, value = _key_and_value(text)
    return f"{name}: found '{value}', expected {expected}."


def _key_and_value(text: str) -> tuple[str, str]:
    """Return the full dotted key and the innermost value that an error text names."""
    key = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]*)"', text)))
    value = re.search(r"Got value: ([^\n]*)", text) or re.search(r"Given value: ([^\n]*)", text)
    return key, value.group(1).strip()[:120] if value else ""


_KINDS: list[tuple[str, Any]] = [
    (r"Group '([^']*)' does not accept option '([^']*)'", _group_option),
    (r"Option '([^']*)' is not accepted", _unknown_option),
    (r"[Uu]nrecognized arguments: (.*)", _unrecognized),
    (r"(?:module '|No )([\w.]+)(?:' has no)? attribute '?([^'\s]*)", _no_attribute),
    (r"Expected a dot import path string: ([^\n]*)", _no_class),
    (r"(?:following arguments are required: |Option ')([^'\n]*)(?:' is required)?", _required),
    (r"Literal\[", _literal),
    (r"Expected a <class '(?!NoneType)", _wrong_type),
]


def _keys(parser: ArgumentParser) -> list[str]:
    # Private attribute of argparse: the only list of the parser's options.
    keys = {action.dest for action in parser._actions if action.dest not in ("help", "print_config")}
    keys.update(f"model.{name}" for name in accepted_keywords(FewShotClassifier))
    for section, base in _BASES.items():
        keys.update(f"{section}.{name}" for class_ in _subclasses(base) for name in accepted_keywords(class_))
    return sorted(keys)


def _subclasses(base: type | None) -> list[type]:
    direct: list[type] = base.__subclasses__() if base else []
    found = [*direct, *(deeper for child in direct for deeper in _subclasses(child))]
    return [child for child in found if not child.__name__.startswith("_")]


def _import(path: str) -> Any:
    with suppress(ImportError, AttributeError, ValueError):
        return resolve_name(path)
    return None
