"""Check class names as CLIP's text tower reads them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from ..findings import Finding, counted
from ..index import listing

CONTEXT = 77  # tokens that CLIP reads, with those of start and end


def check_class_names(names: Sequence[str], template: str) -> tuple[list[Finding], list[Finding]]:
    """Return faults and notes: prompts that are too long, names that read the same, and names that are no words.

    Args:
        names: The class names.
        template: Class prompt with `{}` for the class name.
    """
    if not names:
        return [], []
    from open_clip.tokenizer import SimpleTokenizer  # takes seconds

    tokenizer = SimpleTokenizer()
    tokens = {name: tuple(tokenizer.encode(template.replace("{}", name.replace("_", " ")))) for name in names}
    lengths = {name: len(found) + 2 for name, found in tokens.items()}
    long = [f"'{name}': {length} tokens with '{template}'" for name, length in lengths.items() if length > CONTEXT]
    same = _groups(names, tokens.__getitem__)
    alike = [group for group in _groups(names, _letters) if group not in same]
    wordless = [f"'{name}'" for name in names if not any(map(str.isalpha, name))]
    foreign = [f"'{name}'" for name in names if not all(map(_is_latin, name))]
    faults = [
        counted(
            long,
            f"class name has a prompt of more than CLIP's {CONTEXT} tokens: shorten it with --data.class_names",
            f"class names have prompts of more than CLIP's {CONTEXT} tokens: shorten them with --data.class_names",
        ),
        counted(
            [_quoted(group) for group in same],
            "group of class names reads the same to CLIP: rename them with --data.class_names",
            "groups of class names read the same to CLIP: rename them with --data.class_names",
        ),
    ]
    notes = [
        counted(
            [_quoted(group) for group in alike],
            "group of class names differs in signs, case and spaces only",
            "groups of class names differ in signs, case and spaces only",
        ),
        counted(
            wordless,
            "class name has no letter, so that a prompt says nothing: give a name with --data.class_names",
            "class names have no letters, so that prompts say nothing: give names with --data.class_names",
        ),
        counted(
            foreign,
            "class name is not in Latin letters; CLIP was trained on English texts",
            "class names are not in Latin letters; CLIP was trained on English texts",
        ),
    ]
    return [found for found in faults if found], [found for found in notes if found]


def _groups(names: Sequence[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Return the groups of two or more names with the same key."""
    found: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        found[key(name)].append(name)
    return [group for group in found.values() if len(group) > 1]


def _letters(name: str) -> str:
    """Return the letters and digits of a name in lower case; the name itself if it has none."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold()) or name


def _is_latin(character: str) -> bool:
    return not character.isalpha() or "LATIN" in unicodedata.name(character, "LATIN")


def _quoted(names: Sequence[str]) -> str:
    return listing([f"'{name}'" for name in names])
