"""Options as the agents of sweeps pass them: `--key=value` with values written by Python."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SECTIONS = ("data", "model", "trainer", "stage_switch", "protocol")


def agent_words(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with the values of an agent as YAML has them.

    `--x=None` becomes `--x=null`, and the mapping of a nested parameter, `--model={'tuner': {'rank': 4}}`, becomes
    `--model.tuner.rank=4`. Whatever else stands as it is: YAML reads True, False, numbers and lists of Python.
    """
    found: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        section = option.removeprefix("--").partition(".")[0]
        if not (equals and option.startswith("--")):
            found.append(word)
        elif value == "None":
            found.append(f"{option}=null")
        elif section in SECTIONS and value.startswith("{") and (mapping := _mapping(value)) is not None:
            found += [f"{name}={text}" for name, text in _options(option, mapping)]
        else:
            found.append(word)
    return found


def _mapping(text: str) -> dict[str, Any] | None:
    """Return a mapping that Python or JSON wrote; None for anything else, which the parser reads."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        return value if isinstance(value, dict) and value and all(isinstance(key, str) for key in value) else None
    return None


def _options(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the options of nested mappings; a class with its arguments is one value."""
    if isinstance(value, Mapping) and value and "class_path" not in value:
        for key, item in value.items():
            yield from _options(f"{name}.{key}", item)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)
