"""CoOp: context vectors in place of the words around the class names, trained through the frozen text tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...errors import DtrapError
from ..backbones.base import Backbone, Tower
from ..chunking import encode_in_chunks
from ..text_head import ClassPrompts
from .base import Tuner, another_backbone, warmup_cosine

ClassPosition = Literal["end", "front", "middle"]


class Placeholder(NamedTuple):
    """A word of one token that holds the place of a context vector.

    Attributes:
        word: The word.
        other: Another such word; where the tokens of the two differ, there is the place.
        first: Position of a prompt's first word: the number of start tokens.
    """

    word: str
    other: str
    first: int


@dataclass(frozen=True)
class ContextPrompts:
    """Prompts with places for context vectors.

    Attributes:
        class_names: The W names.
        tokens: [W, L] int64, placeholders at the places.
        places: Positions [W, n] of the context vectors.
    """

    class_names: tuple[str, ...]
    tokens: Tensor
    places: Tensor


def find_placeholder(backbone: Backbone) -> Placeholder:
    """A word that this backbone's tokenizer makes one token of, at the beginning of a prompt and after another word.

    Raises:
        DtrapError: None of the words tried is one token.
    """
    pairs = (("X", "Z"), ("a", "of"))
    for word, other in pairs:
        tokens = backbone.tokenize([f"{word} {word}", f"{other} {other}"])
        places = (tokens[0] != tokens[1]).nonzero().flatten().tolist()
        if len(places) == 2 and places[1] == places[0] + 1:
            return Placeholder(word, other, places[0])
    raise DtrapError(
        f"the tokenizer of {backbone.identifier} makes one token each of none of the words "
        f"{', '.join(word for word, _ in pairs)}, which would hold the places of context vectors. "
        "Give the model's own tokenizer."
    )


def word_tokens(backbone: Backbone, placeholder: Placeholder, words: str) -> Tensor:
    """Tokens [n] of words at the beginning of a prompt, without start token.

    Raises:
        DtrapError: There are more than the model has room for.
    """
    followed = backbone.tokenize([f"{words} {placeholder.word}", f"{words} {placeholder.other}"])
    end = int((followed[0] != followed[1]).nonzero()[0])
    return followed[0, placeholder.first : end]


def context_embedding(backbone: Backbone, tokens: Tensor) -> Tensor:
    """Word embeddings [n, C] of tokens [n], in the backbone's precision."""
    with torch.no_grad():
        return backbone.token_embedding(tokens.to(text_weight(backbone).device)[None])[0].clone()


def text_weight(backbone: Backbone) -> Tensor:
    """The weight [vocabulary, C] of the word embedding; tells width, type and device of the text tower's input."""
    return next(backbone.token_embedding.parameters())


class CoOp(Tuner):
    """Context optimization (Zhou et al. 2022, IJCV): n trained vectors stand where "a photo of a" stands in the prompt.

    The prompt is context, class name (`_` read as a space) and a full stop. Templates and descriptions have no
    effect on it: only the class names are taken.

    Args:
        context_tokens: Number n of context vectors; with `initial_words` it is the number of their tokens.
        initial_words: Words such as "a photo of a" whose embeddings the vectors start from; None draws them from a
            normal distribution of standard deviation 0.02.
        class_position: Where the class name stands: after the context ("end"), before it ("front"), or after its
            first n // 2 vectors ("middle").
        class_specific: A context of its own for every class, [W, n, C] in place of [n, C].

    Raises:
        DtrapError: `class_position` or `context_tokens` is none of these.
    """

    name = "coop"
    own_prompts = True
    learning_rate = 2e-3
    context: nn.Parameter
    _placeholder: Placeholder

    def __init__(
        self,
        context_tokens: int = 16,
        initial_words: str | None = None,
        class_position: ClassPosition = "end",
        class_specific: bool = False,
    ) -> None:
        super().__init__()
        if context_tokens < 1:
            raise DtrapError(f"CoOp: context_tokens is {context_tokens}; expected at least 1.")
        if class_position not in get_args(ClassPosition):
            expected = ", ".join(get_args(ClassPosition))
            raise DtrapError(f"CoOp: class_position is {class_position!r}; expected one of {expected}.")
        if initial_words is not None and not initial_words.strip():
            raise DtrapError(f"CoOp: initial_words is {initial_words!r}; expected words, or null for a random start.")
        self.context_tokens = context_tokens
        self.initial_words = initial_words
        self.class_position = class_position
        self.class_specific = class_specific
        self._backbones: list[Backbone] = []
        self._word_tokens: Tensor | None = None
        self._prompts: ContextPrompts | None = None

    @property
    def trains(self) -> frozenset[Tower]:
        """The text tower: its frozen weights pass the gradient on to the context."""
        return frozenset({"text"})

    def attach(self, backbone: Backbone) -> None:
        """Make room for the context; the backbone is left as it is.

        Raises:
            DtrapError: This tuner is attached to another backbone, or the tokenizer does not go with placeholders.
        """
        if self._backbones:
            if self._backbones[0] is not backbone:
                raise another_backbone(self)
            return
        self._placeholder = find_placeholder(backbone)
        if self.initial_words is not None:
            words = " ".join(self.initial_words.replace("_", " ").split())
            self._word_tokens = word_tokens(backbone, self._placeholder, words)
            self.context_tokens = len(self._word_tokens)
        self._backbones.append(backbone)
        weight = text_weight(backbone)
        self.context = nn.Parameter(weight.new_zeros(self._shape(1, weight.shape[1])))
        self.reset(0, 1)

    def _shape(self, num_classes: int, width: int) -> tuple[int, ...]:
        own = (num_classes,) if self.class_specific else ()
        return (*own, self.context_tokens, width)

    def _allocate(self, shape: tuple[int, ...]) -> None:
        if self.context.shape != shape:
            self.context = nn.Parameter(self.context.new_zeros(shape))

    def reset(self, seed: int, num_classes: int) -> None:
        """The embeddings of the initial words, or a normal draw of standard deviation 0.02."""
        self._allocate(self._shape(num_classes, self.context.shape[-1]))
        with torch.no_grad():
            if self._word_tokens is not None:
                self.context.copy_(context_embedding(self._backbones[0], self._word_tokens))
            else:
                generator = Generator().manual_seed(seed)
                self.context.copy_(torch.empty(self.context.shape).normal_(std=0.02, generator=generator))

    def adapter_state(self) -> dict[str, Tensor]:
        """`context`: [n, C], or [W, n, C] where it is class-specific."""
        return {"context": self.context}

    def make_room(self, state: dict[str, Tensor]) -> None:
        """Take the number of classes of a saved class-specific context."""
        saved = state.get("context")
        if self.class_specific and saved is not None and saved.ndim == 3:
            self._allocate(self._shape(len(saved), self.context.shape[-1]))

    def text_features(self, backbone: Backbone, prompts: ClassPrompts, chunk: int | None = None) -> Tensor:
        """Class text features [W, D] with the context as it is, at most `chunk` classes at a time.

        Raises:
            DtrapError: A prompt is too long for the model (the message names the class), or the context is specific to
                classes of another number.
        """
        context_prompts = self.context_prompts(backbone, prompts.class_names, prompts.tokens.device)
        classes = len(prompts.class_names)
        if self.class_specific and len(self.context) != classes:
            raise DtrapError(
                f"CoOp: the context is specific to {len(self.context)} classes, the task has {classes}. Tune anew for "
                "these classes, or set class_specific: false before the tuning."
            )

        def encode(rows: Tensor) -> Tensor:
            tokens, places = context_prompts.tokens[rows], context_prompts.places[rows]
            embeddings = backbone.token_embedding(tokens)
            context = self.context[rows] if self.class_specific else self.context.expand(len(rows), -1, -1)
            places = places[..., None].expand_as(context)
            return backbone.encode_text_embeddings(embeddings.scatter(1, places, context.to(embeddings.dtype)), tokens)

        return encode_in_chunks(encode, torch.arange(classes, device=context_prompts.tokens.device), chunk)

    def context_prompts(
        self, backbone: Backbone, class_names: tuple[str, ...], device: torch.device | None = None
    ) -> ContextPrompts:
        """The prompts of these classes on a device; made once for as long as the classes stay.

        Raises:
            DtrapError: A prompt is too long for the model; the message names the class and what would fit.
        """
        known = self._prompts
        device = device if device is not None else torch.device("cpu")
        if known is None or known.class_names != class_names or known.tokens.device != device:
            with torch.inference_mode(False):
                tokens, places = self._tokenize(backbone, class_names)
                self._prompts = known = ContextPrompts(class_names, tokens.to(device), places.to(device))
        return known

    def _tokenize(self, backbone: Backbone, class_names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Tokens [W, L] and places [W, n]."""
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
                    f"class {name!r}: {found} places for {count} context tokens found in the prompt "
                    f"{self._prompt(name, words[0], count)!r}. Rename the class in class_names."
                )
        return tokens, differs.nonzero()[:, 1].view(-1, count)

    def _prompt(self, class_name: str, word: str, count: int) -> str:
        before = {"end": count, "front": 0, "middle": count // 2}[self.class_position]
        return " ".join([word] * before + [class_name.replace("_", " ")] + [word] * (count - before)) + "."

    def _too_long(self, backbone: Backbone, class_names: tuple[str, ...]) -> DtrapError | None:
        """The error of the class with the least room; None where every class has enough."""
        room = {name: self._room(backbone, name) for name in class_names}
        longest = min(room, key=room.__getitem__)
        if room[longest] >= self.context_tokens:
            return None
        remedy = "Shorten the class name"
        if room[longest] > 0:
            setting = "initial_words" if self.initial_words is not None else "context_tokens"
            remedy += f", or make do with {room[longest]} (--model.tuner.{setting})"
        fit = f"{max(room[longest], 0)} would fit"
        return DtrapError(
            f"class {longest!r}: its prompt with {self.context_tokens} context tokens is too long for "
            f"{backbone.identifier}, which has room for {backbone.context_length} tokens in all; {fit}. {remedy}."
        )

    def _room(self, backbone: Backbone, class_name: str) -> int:
        """How many context tokens fit, `context_tokens` at most; -1 where the name alone is too long."""
        for count in range(self.context_tokens, -1, -1):
            try:
                backbone.tokenize([self._prompt(class_name, self._placeholder.word, count)])
            except DtrapError:
                continue
            return count
        return -1

    def optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer:
        """Plain SGD with momentum 0.9 and weight decay 5e-4, as CoOp's code has it."""
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=5e-4)

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler:
        """One epoch at 1e-5, then a cosine per epoch; see `warmup_cosine`."""
        return warmup_cosine(optimizer, total_steps, steps_per_epoch)
