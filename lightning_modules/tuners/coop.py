"""CoOp: trained context vectors that replace the words around the class names in the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor, nn

from ...errors import DtrapError, check_at_least, check_one_of
from ..backbones.base import Backbone, Tower
from ..chunking import encode_in_chunks, members_at_work
from ..text_head import ClassPrompts, LongestName
from ..tracing import can_be_kept
from .base import DasslTraining, Tuner, attach_once, draw
from .stacked import stacked_parameter

ClassPosition = Literal["end", "front", "middle"]


class Placeholder(NamedTuple):
    """A one-token word that reserves the position of a context vector.

    Attributes:
        word: The word.
        other: Another such word; the reserved positions are those where the tokens of the two differ.
        first: Position of a prompt's first word: the number of start tokens.
    """

    word: str
    other: str
    first: int


@dataclass(frozen=True)
class ContextPrompts:
    """Prompts with positions for context vectors.

    Attributes:
        class_names: The W names.
        tokens: [W, L] int64, with placeholders at these positions.
        places: Positions [W, n] of the context vectors.
    """

    class_names: tuple[str, ...]
    tokens: Tensor
    places: Tensor


def find_placeholder(backbone: Backbone) -> Placeholder:
    """Find a word that is one token for this backbone's tokenizer, at the start of a prompt and after another word.

    Raises:
        DtrapError: None of the candidates is one token.
    """
    pairs = (("X", "Z"), ("a", "of"))
    for word, other in pairs:
        tokens = backbone.tokenize([f"{word} {word}", f"{other} {other}"])
        places = (tokens[0] != tokens[1]).nonzero().flatten().tolist()
        if len(places) == 2 and places[1] == places[0] + 1:
            return Placeholder(word, other, places[0])
    raise DtrapError(
        f"the tokenizer of {backbone.identifier} splits the words {', '.join(word for word, _ in pairs)}; expected one "
        "of them to be one token, as placeholder for a context vector. Use the model's own tokenizer."
    )


def word_tokens(backbone: Backbone, placeholder: Placeholder, words: str) -> Tensor:
    """Return the tokens [n] of words at the start of a prompt, without the start token.

    Raises:
        DtrapError: The words do not fit into the context length.
    """
    followed = backbone.tokenize([f"{words} {placeholder.word}", f"{words} {placeholder.other}"])
    end = int((followed[0] != followed[1]).nonzero()[0])
    return followed[0, placeholder.first : end]


def context_embedding(backbone: Backbone, tokens: Tensor) -> Tensor:
    """Return the word embeddings [n, C] of tokens [n], in the backbone's precision."""
    with torch.no_grad():
        return backbone.token_embedding(tokens.to(text_weight(backbone).device)[None])[0].clone()


def text_weight(backbone: Backbone) -> Tensor:
    """Return the weight [vocabulary, C] of the word embedding: width, type and device of the text tower's input."""
    return next(backbone.token_embedding.parameters())


def check_words(tuner: str, words: str | None) -> None:
    """Raise a DtrapError if initial words are given but empty."""
    if words is not None and not words.strip():
        raise DtrapError(f"{tuner}: initial_words is {words!r}; expected words, or null for a random start.")


class CoOp(DasslTraining, Tuner):
    """Context optimization (Zhou et al. 2022, IJCV): n trained vectors replace "a photo of a" in the prompt.

    The prompt is context, class name (`_` read as a space) and a full stop. Only the class names are used; templates
    and descriptions have no effect.

    Args:
        context_tokens: Number n of context vectors; with `initial_words` the number of their tokens.
        initial_words: Words such as "a photo of a" whose embeddings are the start of the vectors; None draws them from
            a normal distribution with standard deviation 0.02.
        class_position: Position of the class name: after the context ("end"), before it ("front"), or after its first
            n // 2 vectors ("middle").
        class_specific: Train a separate context for each class.

    Attributes:
        context: [n, C], or [W, n, C] if it is class-specific.

    Raises:
        DtrapError: An argument has no valid value.
    """

    name = "coop"
    references = ("zhou2022coop",)
    own_prompts = True
    learning_rate = 2e-3
    side_by_side = True
    trains: frozenset[Tower] = frozenset({"text"})  # its weights are frozen, but its features change with the context
    context: nn.Parameter
    _placeholder: Placeholder
    _longest: LongestName
    _is_stacked = False

    def __init__(
        self,
        context_tokens: int = 16,
        initial_words: str | None = None,
        class_position: ClassPosition = "end",
        class_specific: bool = False,
    ) -> None:
        super().__init__()
        check_at_least("CoOp: context_tokens", context_tokens, 1)
        check_one_of("CoOp: class_position", class_position, get_args(ClassPosition))
        check_words("CoOp", initial_words)
        self.context_tokens = context_tokens
        self.initial_words = initial_words
        self.class_position = class_position
        self.class_specific = class_specific
        self._start: Tensor | None = None
        self._prompts: ContextPrompts | None = None

    @attach_once
    def attach(self, backbone: Backbone) -> None:
        """Allocate the context; the backbone is not changed.

        Raises:
            DtrapError: This tuner is attached to another backbone, or the tokenizer does not support placeholders.
        """
        self._placeholder = find_placeholder(backbone)
        if self.initial_words is not None:
            words = " ".join(self.initial_words.replace("_", " ").split())
            self._start = context_embedding(backbone, word_tokens(backbone, self._placeholder, words))
            self.context_tokens = len(self._start)
        self._longest = LongestName(partial(self._prompt, word=self._placeholder.word, count=self.context_tokens))
        weight = text_weight(backbone)
        self.context = nn.Parameter(weight.new_zeros(self.context_tokens, weight.shape[1]))
        self.reset(0, 1)

    def _make_context(self, num_classes: int) -> None:
        """Allocate the context, for each class if it is class-specific, unless it has this shape."""
        of_class = (num_classes,) if self.class_specific else ()
        shape = (*of_class, self.context_tokens, self.context.shape[-1])
        if self.context.shape != shape:
            self.context = nn.Parameter(self.context.new_zeros(shape))

    def reset(self, seed: int, num_classes: int) -> None:
        """Start from the embeddings of the initial words, or from normal draws with standard deviation 0.02."""
        self._make_context(num_classes)
        if self._start is None:
            draw(self.context, nn.init.normal_, 0.0, 0.02, generator=Generator().manual_seed(seed))
        else:
            with torch.no_grad():
                self.context.copy_(self._start)

    def make_room(self, state: dict[str, Tensor]) -> None:
        """Allocate a class-specific context for the saved number of classes."""
        saved = state.get("context")
        if self.class_specific and saved is not None and saved.ndim == 3:
            self._make_context(len(saved))

    def text_features(self, backbone: Backbone, prompts: ClassPrompts, chunk: int | None = None) -> Tensor:
        """Return class text features [W, D] with the current context, at most `chunk` classes per pass.

        Raises:
            DtrapError: A prompt is too long for the model (the message names the class), or a class-specific context is
                for another number of classes.
        """
        context_prompts = self.context_prompts(backbone, prompts.class_names, prompts.tokens.device)
        classes = len(prompts.class_names)
        contexts = self._stacked_contexts(classes)
        if contexts is None and self.class_specific and len(self.context) != classes:
            raise DtrapError(
                f"CoOp: the context is specific to {len(self.context)} classes, but the task has {classes}. Tune again "
                "for these classes, or tune with --model.tuner.class_specific false."
            )

        length = self._longest(backbone, prompts)

        def encode(rows: Tensor) -> Tensor:
            tokens, places = context_prompts.tokens[rows, :length], context_prompts.places[rows]
            embeddings = backbone.token_embedding(tokens)
            if contexts is not None:
                context = contexts[rows]
            else:
                context = self.context[rows] if self.class_specific else self.context.expand(len(rows), -1, -1)
            places = places[..., None].expand_as(context)
            return backbone.encode_text_embeddings(embeddings.scatter(1, places, context.to(embeddings.dtype)), tokens)

        return encode_in_chunks(encode, torch.arange(classes, device=context_prompts.tokens.device), chunk)

    def _stacked_contexts(self, classes: int) -> Tensor | None:
        """Return a context for each of the classes of the episodes at work: [classes, n, C]; None for one episode."""
        if not self._is_stacked:
            return None
        members = list(members_at_work())
        contexts = self.context[members]
        if self.class_specific:
            return contexts.flatten(0, 1)
        return contexts.repeat_interleave(classes // len(members), dim=0)

    @contextmanager
    def stacked(self, states: Sequence[Mapping[str, Tensor]]) -> Iterator[None]:
        """Within it, the context is [E, n, C], or [E, W, n, C] if it is class-specific."""
        own = self.context
        self.context, self._is_stacked = stacked_parameter([state["context"] for state in states], own), True
        try:
            yield
        finally:
            self.context, self._is_stacked = own, False

    def context_prompts(
        self, backbone: Backbone, class_names: tuple[str, ...], device: torch.device | None = None
    ) -> ContextPrompts:
        """Return the prompts of these classes on a device; cached until the classes change.

        Raises:
            DtrapError: A prompt is too long for the model; the message names the class and the length that would fit.
        """
        known = self._prompts
        device = device if device is not None else torch.device("cpu")
        if known is None or known.class_names != class_names or known.tokens.device != device:
            with torch.inference_mode(False):
                tokens, places = self._tokenize(backbone, class_names)
                known = ContextPrompts(class_names, tokens.to(device), places.to(device))
            if can_be_kept(known.tokens):
                self._prompts = known
        return known

    def _tokenize(self, backbone: Backbone, class_names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Return tokens [W, L] and places [W, n]."""
        words = (self._placeholder.word, self._placeholder.other)
        count = self.context_tokens
        try:
            tokens, others = (backbone.tokenize([self._prompt(c, word, count) for c in class_names]) for word in words)
        except DtrapError as error:
            raise self._too_long(backbone, class_names) or error from error
        differs = tokens != others
        for name, found in zip(class_names, differs.sum(dim=1).tolist(), strict=True):
            if found != count:
                raise DtrapError(
                    f"class {name!r}: the prompt {self._prompt(name, words[0], count)!r} has {found} places for "
                    f"context tokens; expected {count}. Rename the class in class_names."
                )
        return tokens, differs.nonzero()[:, 1].view(-1, count)

    def _prompt(self, class_name: str, word: str, count: int) -> str:
        before = {"end": count, "front": 0, "middle": count // 2}[self.class_position]
        return " ".join([word] * before + [class_name.replace("_", " ")] + [word] * (count - before)) + "."

    def _too_long(self, backbone: Backbone, class_names: tuple[str, ...]) -> DtrapError | None:
        """Build the error for the class with the least room; None if every class has enough."""
        room = {name: self._room(backbone, name) for name in class_names}
        longest = min(room, key=room.__getitem__)
        if room[longest] >= self.context_tokens:
            return None
        remedy = "Shorten the class name"
        if room[longest] > 0:
            setting = "initial_words" if self.initial_words is not None else "context_tokens"
            remedy += f", or use {room[longest]} (--model.tuner.{setting})"
        fit = f"{max(room[longest], 0)} would fit"
        return DtrapError(
            f"class {longest!r}: its prompt with {self.context_tokens} context tokens is too long for "
            f"{backbone.identifier}, which has room for {backbone.context_length} tokens in total; {fit}. {remedy}."
        )

    def _room(self, backbone: Backbone, class_name: str) -> int:
        """Return how many context tokens fit, at most `context_tokens`; -1 if the name alone is too long."""
        for count in range(self.context_tokens, -1, -1):
            try:
                backbone.tokenize([self._prompt(class_name, self._placeholder.word, count)])
            except DtrapError:
                continue
            return count
        return -1
