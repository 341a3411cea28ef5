"""Build class prompts from class names and templates or descriptions, and class text features from prompts."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import DtrapError, check_braces, check_template, nearest
from ..parsing import read_json, read_yaml
from .backbones.base import Backbone
from .losses import normalize
from .tracing import can_be_kept

ASSETS = Path(__file__).parents[1] / "assets"

Descriptions = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class ClassPrompts:
    """The prompts of a task's classes.

    Attributes:
        class_names: The W names.
        prompts: The P prompts, ordered by class.
        per_class: Number of prompts of each of the W classes.
        tokens: [P, context_length] int64.
        lengths: Number of tokens of each prompt up to the one where the feature is read; None for all tokens.
        length: Number of tokens of the longest prompt in use; None for all tokens.
        data_set: Names of all classes that the data set has, of which the task's are some; empty if they are unknown.
    """

    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    per_class: tuple[int, ...]
    tokens: Tensor
    lengths: tuple[int, ...] | None = None
    length: int | None = None
    data_set: tuple[str, ...] = ()

    @classmethod
    def of(cls, prompts: Mapping[str, Sequence[str]], backbone: Backbone, *, distinct: bool = True) -> ClassPrompts:
        """Tokenize the prompts of each class; raises as `tokenize_classes`."""
        every = tuple(prompt for of_class in prompts.values() for prompt in of_class)
        per_class = tuple(map(len, prompts.values()))
        return cls(tuple(prompts), every, per_class, tokenize_classes(prompts, backbone, distinct=distinct))

    @property
    def used_tokens(self) -> Tensor:
        """The tokens [P, L] without what follows the longest prompt in use."""
        return self.tokens[:, : self.length]

    def measured(self, backbone: Backbone, others: Iterable[str] = (), data_set: Sequence[str] = ()) -> ClassPrompts:
        """Return the prompts with their lengths, the longest one among `others` too.

        A trained text tower encodes all prompts of a task with one number of tokens. With that of the task's longest
        prompt, the last bits of a class's feature would depend on the task's other classes.

        Args:
            backbone: The backbone with the tokenizer.
            others: Prompts of other classes of the data set.
            data_set: Names of all its classes.
        """
        if not backbone.cuts_text or not self.prompts:
            return replace(self, data_set=tuple(data_set))
        lengths = tuple((backbone.text_ends(self.tokens) + 1).tolist())
        longest = max(*lengths, longest_prompt(backbone, others))
        return replace(self, lengths=lengths, length=longest, data_set=tuple(data_set))

    @property
    def by_class(self) -> dict[str, list[str]]:
        """The prompts of each class."""
        texts = iter(self.prompts)
        counts = zip(self.class_names, self.per_class, strict=True)
        return {name: [next(texts) for _ in range(count)] for name, count in counts}


# Number of tokens of the longest of some prompts, by backbone and prompts.
_longest: WeakKeyDictionary[Backbone, dict[tuple[str, ...], int]] = WeakKeyDictionary()
_KEPT = 64  # lists of prompts


def longest_prompt(backbone: Backbone, prompts: Iterable[str]) -> int:
    """Return the number of tokens of the longest prompt up to the one where the feature is read; 0 without prompts.

    It is the context length if a prompt is too long, or if the model reads all tokens.
    """
    prompts = tuple(prompts)
    if not prompts:
        return 0
    if not backbone.cuts_text:
        return backbone.context_length
    known = _longest.setdefault(backbone, {})
    if prompts not in known:
        try:
            tokens = backbone.tokenize(list(prompts))
            length = backbone.text_length(tokens)
        except DtrapError:  # of a class that this task may not have
            length = backbone.context_length
        if len(known) >= _KEPT:
            known.clear()
        known[prompts] = length
    return known[prompts]


class LongestName:
    """The number of tokens of the longest prompt that a tuner makes of the names of a data set.

    It is looked up once for each task, not in each step: a data set may have a thousand names.

    Args:
        prompt: Returns the prompt of a class name.
    """

    def __init__(self, prompt: Callable[[str], str]) -> None:
        self.prompt = prompt
        self._last: tuple[ClassPrompts, int] | None = None

    def __call__(self, backbone: Backbone, prompts: ClassPrompts) -> int:
        """Return it for the data set of a task's prompts, or for the task's own names where that is unknown."""
        if self._last is None or self._last[0] is not prompts:
            names = dict.fromkeys((*prompts.data_set, *prompts.class_names))
            self._last = prompts, longest_prompt(backbone, map(self.prompt, names))
        return self._last[1]


def class_prompts(
    class_names: Sequence[str],
    templates: str | Sequence[str],
    backbone: Backbone,
    descriptions: Descriptions | None = None,
    *,
    distinct: bool = True,
) -> ClassPrompts:
    """Build and tokenize prompts; the class name, with spaces for `_`, replaces `{}` in a template or description.

    Args:
        class_names: The W names.
        templates: One or several; each makes one prompt per class.
        backbone: The backbone with the tokenizer.
        descriptions: Sentences of each class that replace the templates.
        distinct: Whether classes with the same tokens are refused.

    Raises:
        DtrapError: No class, a duplicate class name, a class without description, a template without `{}`, a prompt
            that is too long for the model, or two classes with the same tokens; the message names the class.
    """
    return ClassPrompts.of(prompt_texts(class_names, templates, descriptions), backbone, distinct=distinct)


def prompt_texts(
    class_names: Sequence[str], templates: str | Sequence[str], descriptions: Descriptions | None = None
) -> dict[str, list[str]]:
    """Build the prompts of each class; see `class_prompts`."""
    templates = [templates] if isinstance(templates, str) else list(templates)
    texts_only = [template.strip() for template in templates if isinstance(template, str)]
    lists = [template for template in texts_only if template.startswith("[") and template.endswith("]")]
    if lists:
        raise DtrapError(
            f"template is the text {lists[0]!r}, which looks like a list. Quote each of several templates: "
            "\"['a photo of a {}.', 'a close-up of a {}.']\"."
        )
    if not templates:
        raise DtrapError("template is an empty list; expected texts that contain {} for the class name.")
    for template in templates:
        check_template("template", template)
    if not class_names:
        raise DtrapError("there are no class names; expected at least one.")
    check_names(class_names)
    repeated = [name for name, count in Counter(class_names).items() if count > 1]
    if repeated:
        raise DtrapError(f"duplicate class name {repeated[0]!r}; expected a name for each class. Rename one of them.")
    texts: Descriptions = dict.fromkeys(class_names, templates) if descriptions is None else descriptions
    missing = [name for name in class_names if name not in texts]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DtrapError(
            f"descriptions: none for the class {', '.join(map(repr, missing[:5]))}{more}."
            f"{nearest(missing[0], texts)} Expected sentences for every class name of the data."
        )
    return {name: [text.replace("{}", name.replace("_", " ")) for text in texts[name]] for name in class_names}


def check_names(class_names: Sequence[str]) -> None:
    """Raise a DtrapError for a class name without a visible character, of which a prompt would say nothing."""
    for number, name in enumerate(class_names, start=1):
        # Separators, and characters that control or format text.
        if all(unicodedata.category(character)[0] in "ZC" for character in name.replace("_", " ")):
            raise DtrapError(
                f"class name {number} of {len(class_names)} is {name!r}; expected a word. Rename the class, for a "
                "folder with --data.class_names '{FOLDER: NAME}'."
            )


def tokenize_classes(prompts: Mapping[str, Sequence[str]], backbone: Backbone, *, distinct: bool = True) -> Tensor:
    """Tokenize the prompts of each class to [P, context_length], ordered by class.

    Raises:
        DtrapError: A prompt is too long for the model, or two classes have the same tokens; the message names the class
            and the prompt.
    """
    try:
        tokens = backbone.tokenize([prompt for of_class in prompts.values() for prompt in of_class])
    except DtrapError:  # tokenize again class by class, to find the class that the message has to name
        for name, of_class in prompts.items():
            try:
                backbone.tokenize(list(of_class))
            except DtrapError as error:
                raise DtrapError(f"class {name!r}: {error}") from error
        raise
    if distinct:
        check_distinct(prompts, tokens, backbone)
    return tokens


def check_distinct(prompts: Mapping[str, Sequence[str]], tokens: Tensor, backbone: Backbone) -> None:
    """Refuse two classes that the text tower cannot tell apart; tokenizers ignore case, spaces and more."""
    is_tokens = isinstance(tokens, Tensor) and not tokens.is_floating_point()
    if not is_tokens or len(tokens) != sum(map(len, prompts.values())):
        return  # `check_tokens` says what is wrong with them
    if tokens.numel() == 0 or bool((tokens == tokens.flatten()[0]).all()):
        return  # placeholders of a backbone whose text features do not come from tokens
    known: dict[frozenset[tuple[bytes, float]], str] = {}
    same = []
    rows = iter(tokens.cpu().numpy())
    for name, of_class in prompts.items():
        counts = Counter(next(rows).tobytes() for _ in of_class)
        # The features of a class's prompts are averaged: their shares count, not their order.
        key = frozenset((row, count / len(of_class)) for row, count in counts.items())
        if key in known:
            same.append((known[key], name))
        known.setdefault(key, name)
    if same:
        first, second = same[0]
        more = f", and {len(same) - 1} more pairs are like them" if len(same) > 1 else ""
        raise DtrapError(
            f"the classes {first!r} and {second!r} cannot be told apart: {backbone.identifier} reads "
            f"{prompts[first][0]!r} and {prompts[second][0]!r} as the same text{more}. Give one of them another name "
            f"(images of your own: --data.class_names '{{{second}: ANOTHER NAME}}'; any data: different sentences in "
            "--model.descriptions FILE)."
        )


def read_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Read descriptions of classes from a YAML or JSON file: class name -> one sentence or a list of them.

    The name may also be that of a file in the package's assets, such as "shape_descriptions.yaml".

    Raises:
        DtrapError: The file is missing, is not valid YAML or JSON, or has another structure.
    """
    path = Path(path).expanduser()
    if not path.exists() and (ASSETS / path).is_file():
        path = ASSETS / path
    expected = "Expected a YAML or JSON file such as '{River: [\"a satellite photo of a {}.\", water with banks.]}'"
    try:
        content = read_json(path) if path.suffix == ".json" else read_yaml(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DtrapError(f"descriptions {path}: not readable ({reason}). {expected}.") from error
    if not isinstance(content, dict) or not content:
        raise DtrapError(f"descriptions {path}: contains a {type(content).__name__}. {expected}.")
    return check_descriptions(content, f"descriptions {path}", f"{expected}.")


def check_descriptions(
    content: Mapping[Any, Any],
    source: str = "descriptions",
    expected: str = "Expected sentences such as {'River': ['a satellite photo of a river.', 'water with banks.']}.",
) -> dict[str, list[str]]:
    """Return descriptions as lists of sentences by class name.

    Args:
        content: One sentence or a list of them by class name.
        source: Where they come from, for the error.
        expected: What they should be, for the error.

    Raises:
        DtrapError: A class has no sentence, an empty one or something else, or a sentence has braces other than `{}`.
    """
    descriptions = {str(name): [value] if isinstance(value, str) else value for name, value in content.items()}
    for name, sentences in descriptions.items():
        sound = isinstance(sentences, list) and sentences and all(isinstance(s, str) and s.strip() for s in sentences)
        if not sound:
            raise DtrapError(f"{source}: class {name!r} has {sentences!r}. {expected}")
        for sentence in sentences:
            check_braces(f"{source}: a sentence of class {name!r}", sentence)
    return descriptions


def average_prompts(prompt_features: Tensor, per_class: Sequence[int]) -> Tensor:
    """Average prompt features [P, D] to class features [W, D]: the mean of the normalized prompts of each class."""
    if all(count == 1 for count in per_class):
        return prompt_features
    return torch.stack([rows.mean(dim=0) for rows in normalize(prompt_features).split(list(per_class))])


class FrozenTextFeatures:
    """A cache of the prompt features of a frozen text tower, so that each prompt is encoded once.

    Prompts are encoded one at a time. In a batch the last bits of a feature depend on the other prompts, and the result
    of an episode would depend on the episodes before it.
    """

    def __init__(self) -> None:
        self._features: dict[tuple[str, torch.dtype], Tensor] = {}
        self._last: tuple[ClassPrompts, torch.dtype, torch.device, Tensor] | None = None

    def __call__(self, backbone: Backbone, prompts: ClassPrompts, device: torch.device) -> Tensor:
        """Return class features [W, D] on `device`, without gradient, in the precision of the backbone.

        While torch traces, nothing is cached.
        """
        dtype = next(backbone.parameters()).dtype
        if self._last is not None and self._last[0] is prompts and self._last[1:3] == (dtype, device):
            return self._last[3]
        keys = [(prompt, dtype) for prompt in prompts.prompts]
        lengths = prompts.lengths if prompts.lengths is not None else (None,) * len(keys)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            fresh = {
                key: backbone.encode_text(tokens[None, :length].to(device))[0]
                for key, tokens, length in zip(keys, prompts.tokens, lengths, strict=True)
                if key not in self._features
            }
            known = {**self._features, **fresh}
            features = torch.stack([known[key].to(device) for key in keys])
            features = average_prompts(features, prompts.per_class)
        if can_be_kept(features, *fresh.values()):
            self._features.update(fresh)
            self._last = (prompts, dtype, device, features)
        return features
