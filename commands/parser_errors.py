"""Short messages for jsonargparse's errors, with the nearest valid key or value."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..configs import is_shipped, shipped_configs
from ..datamodules.few_shot import FewShotDataModule
from ..errors import as_typed, expected_one_of, nearest
from ..keywords import accepted_keywords
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.backbones import Backbone
from ..lightning_modules.tuners import Tuner
from .given_configs import CONFIG_OPTIONS
from .own_modules import hidden_file, import_fault
from .plug_ins import GROUPS, plug_ins

_NOISE = re.compile(
    r"Does not validate against any of|Subtypes:|Errors:$|Expected a <class 'NoneType'>|Given value|^$|"
    r"Expected a path but .* either not accessible or invalid"
)
_MOST_LINES = 3
# Base class of the classes that a section can name.
_BASES: dict[str, type] = {
    "model.tuner": Tuner,
    "model.backbone": Backbone,
    "model.optimizer": Optimizer,
    "model.lr_scheduler": LRScheduler,
    "data": FewShotDataModule,
    "trainer.logger": Logger,
    "trainer.callbacks": Callback,
    "trainer.profiler": Profiler,
}
# What other programs call an option or a value.
_MEANT = {
    "lr": "learning_rate",
    "epochs": "max_epochs",
    "gpus": "devices",
    "gpu": "accelerator",
    "device": "accelerator",
    "shots": "shot",
    "ways": "way",
    "out": "output",
    "output_dir": "folder",
    "dir": "root",
    "path": "root",
    "dataset": "root",
    "fp16": "precision",
    "amp": "precision",
    "workers": "num_workers",
}
_MEANT_VALUES = {
    "fp16": "16-mixed",
    "float16": "16-mixed",
    "half": "16-mixed",
    "amp": "16-mixed",
    "mixed": "16-mixed",
    "bfloat16": "bf16-mixed",
    "fp32": "32-true",
    "float32": "32-true",
    "full": "32-true",
    "fp64": "64-true",
    "float64": "64-true",
    "double": "64-true",
}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "a mapping such as '{key: value}'",
    "list": "a list such as '[a, b]'",
    "collections.abc.Sequence": "a list such as '[a, b]'",
}


def explain(error: Exception, parser: ArgumentParser, words: Sequence[str] = ()) -> str:
    """Return a message of at most five lines for a mistake on the command line or in a config.

    jsonargparse has no structured errors, so its text is searched. A kind that is not known here keeps that text, less
    the lines that only repeat types.

    Args:
        error: The parser's error.
        parser: The parser, for the valid keys.
        words: The words that were parsed, each config by its path; the message names the last config with the key.
    """
    text = str(error)
    found = re.findall(r'Parser key "([^"]*)"', text)
    key = _whole_key(found)
    files = [path for option, path in pairwise(words) if option in CONFIG_OPTIONS]
    fault = _import_fault(text, key)
    if fault is not None:
        return fault + _place("class_path", files)
    for pattern, message_of in _KINDS:
        match = re.search(pattern, text, re.DOTALL)
        if match:
            known = message_of(match, text, key, parser)
            return known + _place(known.partition(": ")[0].rpartition(".")[2], files)
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    kept = list(dict.fromkeys(line for line in lines if not _NOISE.search(line)))
    kept = [line for line in kept if not line.startswith("Parser key")] or lines[:1]
    message = [f"--{key}: {kept[0]}" if key else kept[0], *kept[1:_MOST_LINES]]
    value = re.search(r"Given value: (.*)", text)
    if value and "NestedArg" not in value.group(1):
        message.append(f"Found: {value.group(1)[:120]}")
    return "\n".join([*(line[:300] for line in message), f"`{parser.prog} --help all` lists all options."])


def _whole_key(found: Sequence[str]) -> str:
    """Join the keys of nested errors, of which some repeat the keys around them."""
    whole = ""
    for key in map(_plain, found):
        whole = key if not whole or key.startswith(f"{whole}.") or key == whole else f"{whole}.{key}"
    return whole


def _plain(key: str) -> str:
    return as_typed(key).removeprefix("--")


def _place(name: str, files: Sequence[str]) -> str:
    """Return a sentence with the config that has the key, except for shipped configs."""
    line = re.compile(rf"^\s*['\"]?{re.escape(name)}['\"]?\s*:", re.MULTILINE)
    holders = [path for path in files if not is_shipped(path) and line.search(Path(path).read_text(encoding="utf-8"))]
    return f" See {holders[-1]}." if holders else ""


def _unknown_option(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    name = match.group(1)
    if name == "class_path":  # jsonargparse reads class_path as an argument if there are other keys
        return f"--{key}: class_path has other keys next to it. Put the arguments of the class under init_args."
    class_path = re.search(r"given class_path '([^']*)'", text)
    owner: Any = _import(class_path.group(1)) if class_path else None
    valid = accepted_keywords(owner) if owner else []
    typed = f"{key}.{_plain(name)}".removeprefix(".")
    near = _near(typed, [f"{key}.{known}" for known in valid] or option_names(parser))
    shown = f" {owner.__name__} accepts: {', '.join(valid)}." if valid else _all_options(parser)
    return f"--{typed}: unknown option.{near}{shown}"


def _group_option(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    return _unknown(f"{match.group(1)}.{match.group(2)}", parser)


def _unrecognized(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    name = match.group(1).split()[0].partition("=")[0]
    if not name.startswith("-"):
        return (
            f"'{name}': expected options such as --config isic_5shot.yaml, each with its value. "
            "Values that contain spaces need quotes."
        )
    return _unknown(_plain(name.lstrip("-")), parser)


def _unknown(name: str, parser: ArgumentParser) -> str:
    return f"--{name}: unknown option.{_near(name, option_names(parser))}{_all_options(parser)}"


def _all_options(parser: ArgumentParser) -> str:
    return f" `{parser.prog} --help all` lists all options."


def _near(name: str, valid: Sequence[str]) -> str:
    """Return a sentence with the option that was probably meant: of that last part, or spelled most alike."""
    last = name.rpartition(".")[2].replace("-", "_")
    last = _MEANT.get(last, last)
    section = f"{name.rpartition('.')[0]}."
    own = [option.removeprefix(section) for option in valid if option.startswith(section)]
    near = [f"{section}{option}" for option in get_close_matches(last, own, n=1, cutoff=0.7)]
    same = [option for option in valid if option.rpartition(".")[2] == last]
    found = near or same or get_close_matches(name, valid, n=1, cutoff=0.6)
    return f" Did you mean --{found[0]}?" if found else ""


def _no_value(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    option = match.group(1).rpartition("/")[2]
    return f"{option} has no value: expected one argument, as in {option} {'NAME' if 'config' in option else 'VALUE'}."


def _import_fault(text: str, key: str) -> str | None:
    """Return the message for a class whose module cannot be imported; None for another mistake."""
    found = re.findall(r"given class_path '([\w.]+)'", text)
    if key.rstrip("+") in _BASES:
        found += re.findall(r"Given value: ([\w.]+)\s*$", text, re.MULTILINE)
        found += re.findall(r"class_path['\"]?[=:]\s*['\"]([\w.]+)['\"]", text)
    offered = {each.class_path: each for each in plug_ins()}
    faults = (
        offered[path].fault if path in offered else import_fault(path)
        for path in dict.fromkeys(found)
        if "." in path.strip(".")
    )
    fault = next((fault for fault in faults if fault is not None), None)
    return None if fault is None else f"--{key}: {fault}"


def _no_attribute(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    module, name = match.group(1), match.group(2)
    package = _import(module)
    # dir: a package that resolves its names lazily does not hold them yet.
    classes = [each for each in dir(package) if inspect.isclass(getattr(package, each, None))]
    return (
        f"--{key}: {module} has no class {name}.{nearest(name, classes)}{hidden_file(module)}{_class_help(key, parser)}"
    )


def _no_class(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    name, base = match.group(1).strip()[:120], _BASES.get(key.rstrip("+"))
    classes = [class_.__name__ for class_ in _subclasses(base)]
    classes += [each.name for each in plug_ins() if GROUPS[each.group][0] == key.rstrip("+")]
    listed = f" Known: {', '.join(classes)}." if base and base.__module__.startswith("dtrap") else ""
    return f"--{key}: unknown class '{name}'.{nearest(name, classes)} Expected a class name or path.{listed}"


def _class_help(key: str, parser: ArgumentParser) -> str:
    return f" `{parser.prog} --{key}.help` lists the classes." if key else ""


def _no_subclass(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    value = re.findall(r"Given value: ([^\n]*)", text)
    example = next(iter(_subclasses(_BASES.get(key))), None)
    such = f", such as --{key} {example.__name__}" if example else ""
    return f"--{key}: found '{value[-1][:120] if value else ''}', expected a {match.group(1)} by its class name{such}."


def _abstract(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    if key != "data":
        return f"--{key}: {match.group(1)} is a base class. Give one of its subclasses by name."
    return _no_data()


def _required(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    names = [f"{key}.{name}" if key else name for name in match.group(1).strip().split(", ")]
    if names == ["data"]:
        return _no_data()
    return f"missing option: give {' and '.join(f'--{_plain(name)} VALUE' for name in names)}, or set it in a config."


def _no_data() -> str:
    sets = ", ".join(name for name in shipped_configs() if "/" not in name and name != "defaults.yaml")
    return f"no data set chosen. Give the config of one with --config NAME before --data options; shipped: {sets}."


def _literal(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    choices = ",".join(re.findall(r"Literal\[([^\]]*)\]", text)).split(",")
    options = list(dict.fromkeys(choice.strip(" '") for choice in choices))
    name, value = _key_and_value(text)
    meant = _MEANT_VALUES.get(value.lower())
    expected = f"expected one of {', '.join(options)}. Did you mean '{meant}'?" if meant in options else None
    return f"--{name}: found '{value}', {expected or expected_one_of(value, options)}"


def _wrong_type(match: re.Match[str], text: str, key: str, parser: ArgumentParser) -> str:
    kinds = dict.fromkeys(re.findall(r"Expected a <class '([\w.]+)'>", text))
    expected = " or ".join(_TYPES.get(kind, kind) for kind in kinds if kind != "NoneType")
    name, value = _key_and_value(text)
    return f"--{name}: found '{value}', expected {expected}."


def _key_and_value(text: str) -> tuple[str, str]:
    """Return the full dotted key and the innermost value that an error text names."""
    key = _whole_key(re.findall(r'Parser key "([^"]*)"', text))
    value = re.search(r"Got value: ([^\n]*)", text) or re.search(r"Given value: ([^\n]*)", text)
    return key, value.group(1).strip()[:120] if value else ""


_KINDS: list[tuple[str, Any]] = [
    (r"argument (\S+): expected one argument", _no_value),
    (r"Expected an instantiatable class, but (\S+) is abstract", _abstract),
    (r"Group '([^']*)' does not accept option '([^']*)'", _group_option),
    (r"Option '([^']*)' is not accepted", _unknown_option),
    (r"[Uu]nrecognized arguments: (.*)", _unrecognized),
    (r"(?:module '|No )([\w.]+)(?:' has no)? attribute '?([^'\s]*)", _no_attribute),
    (r"Expected a dot import path string: ([^\n]*)", _no_class),
    (r"(?:following arguments are required: |Option ')([^'\n]*)(?:' is required)?", _required),
    (r"Not a valid subclass of (\w+)", _no_subclass),
    (r"Literal\[", _literal),
    (r"Expected a <class '(?!NoneType)", _wrong_type),
]


def option_names(parser: ArgumentParser) -> list[str]:
    """Return the names of all options of a parser, those of all data sets, tuners and backbones included."""
    # Private attribute of argparse: the only list of the parser's options.
    keys = {action.dest for action in parser._actions if action.dest not in ("help", "print_config")}
    keys.update(f"model.{name}" for name in accepted_keywords(FewShotClassifier))
    for section, base in [("data", FewShotDataModule), ("model.tuner", Tuner), ("model.backbone", Backbone)]:
        keys.update(f"{section}.{name}" for class_ in _subclasses(base) for name in accepted_keywords(class_))
    return sorted(keys)


def _subclasses(base: type | None) -> list[type]:
    direct: list[type] = base.__subclasses__() if base else []
    found = [*direct, *(deeper for child in direct for deeper in _subclasses(child))]
    return [child for child in found if not child.__name__.startswith("_") and not inspect.isabstract(child)]


def _import(path: str) -> Any:
    with suppress(ImportError, AttributeError, ValueError):
        return resolve_name(path)
    return None
