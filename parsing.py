"""Read JSON and YAML that may come from anybody: bounded in size, depth and time, with one error for every fault."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import yaml

from .files import read_at_most

# The descriptions of ImageNet's 1,000 classes, 50 sentences each, take 5 MB of JSON.
LARGEST_JSON = 64 << 20
# PyYAML reads about 0.3 MB a second.
LARGEST_YAML = 4 << 20
DEEPEST = 100
# Values that aliases may add. Nine lines of aliases of aliases stand for a thousand million values.
MOST_REPEATED = 10_000


def read_json(path: Path) -> Any:
    """Read a JSON file, gzip-compressed if its name ends in `.gz`.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
        ValueError: It is not JSON, too large, or nested too deep.
    """
    return parse_json(_content(path, LARGEST_JSON))


def parse_json(content: str | bytes) -> Any:
    """Decode JSON.

    Raises:
        ValueError: It is not JSON, too large, or nested too deep.
    """
    _check_size(len(content), LARGEST_JSON)
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_yaml(path: Path, largest: int = LARGEST_YAML, *, unique_keys: bool = False) -> Any:
    """Read a YAML file of plain values; see `parse_yaml`.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
        ValueError: It is not YAML, too large, nested too deep, or repeats too much.
    """
    return parse_yaml(_content(path, largest).decode("utf-8-sig"), unique_keys=unique_keys)


def parse_yaml(text: str, *, unique_keys: bool = False) -> Any:
    """Decode YAML of plain values; aliases may repeat values, but not make them many.

    Args:
        text: The YAML.
        unique_keys: Whether to refuse a mapping in which a key is given twice; otherwise the last one counts.

    Raises:
        ValueError: It is not YAML, nested too deep, or aliases stand for too many values.
    """
    try:
        return yaml.load(text, _UniqueKeys if unique_keys else _Loader)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    """A SafeLoader that counts the values that aliases stand for."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.depth = self.repeated = 0
        self.sizes: dict[int, int] = {}  # number of values, by the identity of a composed node

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} deep in line {mark.line + 1}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if not alias:
            self.sizes[id(node)] = 1 + sum(self.sizes.get(id(child), 0) for child in _children(node))
            return node
        if id(node) not in self.sizes:
            raise yaml.YAMLError(f"an alias within its own value in line {mark.line + 1}")
        self.repeated += self.sizes[id(node)]
        if self.repeated > MOST_REPEATED:
            raise yaml.YAMLError(f"aliases stand for more than {MOST_REPEATED:,} values in line {mark.line + 1}")
        return node


# Also "1e-3": YAML 1.1 takes a number without a point for a text, unlike the parser of the command line.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), [*"-+0123456789"])


class _UniqueKeys(_Loader):
    """A loader that refuses a key that is given twice in a mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        seen: set[str] = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                raise yaml.YAMLError(f"'{key.value}' is given twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _content(path: Path, largest: int) -> bytes:
    try:
        content = read_at_most(path, largest + 1)
    except (EOFError, zlib.error) as error:
        raise ValueError(f"damaged gzip data, {error}") from error
    _check_size(len(content), largest)
    return content


def _check_size(size: int, largest: int) -> None:
    if size > largest:
        raise ValueError(f"larger than {largest >> 20} MB")
