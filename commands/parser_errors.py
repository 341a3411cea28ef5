"""Short messages for jsonargparse's errors, with the nearest valid key or value."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ..configs import is_shipped, shipped_configs
from ..datamodules import few_shot
from ..errors import nearest
from ..keywords import accepted_keywords
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.backbones import Backbone
from ..lightning_modules.tuners import Tuner

_NOISE = re.compile(
    r"Does not validate against any of|Subtypes:|Errors:$|Expected a <class 'NoneType'>|Given value|^$|"
    r"Expected a path but .* either not accessible or invalid"
)
_MOST_LINES = 7
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
    known = _known(text, key, parser)
    if known is not None:
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
    own = [path for path in files if not is_shipped(path)]
    holders = [path for path in own if line.search(Path(path).read_text(encoding="utf-8"))]
    return f" See {holders[-1]}." if holders else ""


def _known(text: str, key: str, parser: ArgumentParser) -> str | None:
    for pattern, message in _KINDS:
        match = re.search(pattern, text, re.DOTALL)
        if match:
            return message(match, text, key, parser)
    return None


def _unknown_option(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    class_path = re.search(r"given class_path '([^']*)'", text)
    name = match.group(1)
    owner = class_path.group(1) if class_path else key
    valid = _parameters(_import(owner)) if class_path else []
    shown = f" {owner.rpartition('.')[2]} accepts: {', '.join(valid)}." if valid else ""
    return f"{key}.{name}: unknown option.{nearest(name, valid)}{shown}"


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
    bases = {"model.tuner": Tuner, "model.backbone": Backbone, "data": few_shot.FewShotDataModule}
    classes = [c.__name__ for c in _subclasses(bases[key])] if key in bases else []
    listed = f" Known: {', '.join(classes)}." if classes else ""
    return f"{key}: unknown class '{name}'.{nearest(name, classes)} Expected a class name or path.{listed}"


def _required(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    names = [f"{key}.{name}" if key else name for name in match.group(1).strip().split(", ")]
    if names == ["data"]:
        sets = ", ".join(name for name in shipped_configs() if "/" not in name and name != "defaults.yaml")
        return f"no data set chosen. Give the config of one with --config NAME; shipped: {sets}."
    return f"missing option: give {' and '.join('--' + name for name in names)}, or set it in a config."


def _literal(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    choices = re.findall(r"'([^']*)'|(?<=[\[ ])(\d+)(?=[,\]])", " ".join(re.findall(r"Literal\[([^\]]*\])", text)))
    options = list(dict.fromkeys(first or second for first, second in choices))
    inner = re.search(r'Parser key "([^"]*)":\s+Expected', text)
    value = re.search(r"Got value: (\S+)", text) or re.search(r"Given value: (.*)", text)
    full = f"{key}.{inner.group(1)}" if inner and inner.group(1) != key else key
    got = value.group(1) if value else ""
    return f"{full}: found '{got}', expected one of {', '.join(options)}.{nearest(got, options)}"


def _wrong_type(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    full = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]*)"', text)))
    kinds = dict.fromkeys(re.findall(r"Expected a <class '([\w.]+)'>", text))
    expected = " or ".join(_TYPES.get(kind, kind) for kind in kinds if kind != "NoneType")
    value = re.search(r"(?:Got|Given) value: ([^\n]*)", text)
    return f"{full}: found '{value.group(1).strip()[:120] if value else ''}', expected {expected}."


_KINDS: list[tuple[str, Any]] = [
    (r"Group '([^']*)' does not accept option '([^']*)'", _group_option),
    (r"Option '([^']*)' is not accepted", _unknown_option),
    (r"[Uu]nrecognized arguments: (.*)", _unrecognized),
    (r"(?:module '|No )([\w.]+)(?:' has no)? attribute '?([^'\s]*)", _no_attribute),
    (r"Expected a dot import path string: (.*?)\n", _no_class),
    (r"(?:following arguments are required: |Option ')([^'\n]*)(?:' is required)?", _required),
    (r"Literal\[", _literal),
    (r"Expected a <class '(?!NoneType)", _wrong_type),
]


def _keys(parser: ArgumentParser) -> list[str]:
    # Private attribute of argparse: the only list of the parser's options.
    keys = {action.dest for action in parser._actions if action.dest not in ("help", "print_config")}
    keys.update(f"model.{name}" for name in _parameters(FewShotClassifier))
    for part, base in (("tuner", Tuner), ("backbone", Backbone)):
        keys.update(f"model.{part}.{n}" for c in _subclasses(base) for n in _parameters(c))
    keys.update(f"data.{n}" for c in _subclasses(few_shot.FewShotDataModule) for n in _parameters(c))
    return sorted(keys)


def _parameters(class_: Any) -> list[str]:
    return [] if class_ is None else accepted_keywords(class_)


def _subclasses(base: type) -> list[type]:
    direct: list[type] = base.__subclasses__()
    return [*direct, *(deeper for child in direct for deeper in _subclasses(child))]


def _import(path: str) -> Any:
    try:
        return import_module(path)
    except ImportError:
        module, _, name = path.rpartition(".")
        try:
            return getattr(import_module(module), name, None)
        except (ImportError, ValueError):
            return None
