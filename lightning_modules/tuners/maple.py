"""MaPLe: prompts for both towers; those of the image tower are linear maps of those of the text tower."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init

from ...errors import DtrapError, check_at_least
from ..backbones.base import Backbone, Tower
from ..chunking import encode_in_chunks
from ..text_head import ClassPrompts, LongestName, tokenize_classes
from ..tracing import can_be_kept
from .base import DasslTraining, Tuner, attach_once, draw, hooked
from .coop import check_words, context_embedding, find_placeholder, text_weight, word_tokens

Hook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]


class MaPLe(DasslTraining, Tuner):
    """Multi-modal prompt learning (Khattak et al. 2023, CVPR), as in the authors' code.

    Before block 0 the context replaces the first n words and, mapped to the image tower's width, is appended to the
    patches. Before block i = 1 .. depth - 1 another trained prompt and its linear map replace the tokens at these
    positions; later blocks pass them on. The prompt is the initial words, the class name (`_` read as a space) and a
    full stop; templates and descriptions have no effect.

    There are no prompts for more blocks than a tower has.

    Args:
        context_tokens: Number n of prompt tokens per tower and block.
        initial_words: The words at the start of every prompt. The embeddings of their first n tokens are the start of
            the context, which replaces them; later words stay. None draws the start from a normal distribution with
            standard deviation 0.02, and only the context precedes the class name.
        depth: Number J of blocks with their own prompts, from the first; 1 means the context alone.

    Raises:
        DtrapError: A number is below 1, or the initial words are empty.

    Attributes:
        context: The prompt [n, C] of the text tower before block 0.
        projection: The linear map from C to the width of the image tower, for `context`.
        deep_context: The prompts [n, C] of the blocks 1 .. depth - 1, as far as a tower has them.
        deep_projections: Their linear maps, as far as the image tower has them.
    """

    name = "maple"
    references = ("khattak2023maple",)
    own_prompts = True
    learning_rate = 3.5e-3
    trains: frozenset[Tower] = frozenset({"vision", "text"})
    context: nn.Parameter
    projection: nn.Linear
    _first: int
    _words: str

    def __init__(self, context_tokens: int = 2, initial_words: str | None = "a photo of a", depth: int = 9) -> None:
        super().__init__()
        check_at_least("MaPLe: context_tokens", context_tokens, 1)
        check_at_least("MaPLe: depth", depth, 1)
        check_words("MaPLe", initial_words)
        self.context_tokens = context_tokens
        self.initial_words = initial_words
        self.depth = depth
        self.deep_context = nn.ParameterList()
        self.deep_projections = nn.ModuleList()
        self._start: Tensor | None = None
        self._tokens: tuple[tuple[str, ...], Tensor] | None = None
        self._longest = LongestName(self._prompt)

    @attach_once
    def attach(self, backbone: Backbone) -> None:
        """Allocate prompts and projections; the backbone is not changed.

        Raises:
            DtrapError: The image tower is not a transformer, the initial words have fewer tokens than the context, or
                this tuner is attached to another backbone.
        """
        layers = backbone.attention_layers("vision")
        if not layers or not backbone.blocks("vision") or getattr(backbone, "image_entrance", None) is None:
            raise DtrapError(
                f"MaPLe: the image tower of {backbone.identifier} has no transformer blocks for prompt tokens (a "
                "ResNet?). Use a backbone with a plain vision transformer, such as ViT-B-16-quickgelu, or a tuner that "
                "does not change the image tower, such as CoOp."
            )
        placeholder = find_placeholder(backbone)
        self._first, self._words = placeholder.first, " ".join([placeholder.word] * self.context_tokens)
        if self.initial_words is not None:
            self._words = " ".join(self.initial_words.replace("_", " ").split())
            tokens = word_tokens(backbone, placeholder, self._words)
            if len(tokens) < self.context_tokens:
                raise DtrapError(
                    f"MaPLe: context_tokens is {self.context_tokens}, but the initial words {self.initial_words!r} "
                    f"have {len(tokens)} tokens; expected at most as many. Use initial_words: null for a random start."
                )
            self._start = context_embedding(backbone, tokens[: self.context_tokens])
        image_width = backbone.get_submodule(f"{layers[0]}.q_proj").in_features
        weight = text_weight(backbone)

        def prompt() -> nn.Parameter:
            return nn.Parameter(weight.new_zeros(self.context_tokens, weight.shape[1]))

        def projection() -> nn.Linear:
            return skip_init(nn.Linear, weight.shape[1], image_width, dtype=weight.dtype, device=weight.device)

        self.context, self.projection = prompt(), projection()
        # A parameter that has no gradient would stop DDP.
        maps, texts = (min(self.depth, len(backbone.blocks(tower))) - 1 for tower in ("vision", "text"))
        for number in range(max(maps, texts)):
            self.deep_context.append(prompt())
            if number < maps:
                self.deep_projections.append(projection())
        self.reset(0, 1)

    @torch.no_grad()
    def reset(self, seed: int, num_classes: int) -> None:
        """Set the context to words or normal draws, deep prompts to normal draws, linear maps to torch's default.

        The deep projections are copies of one draw, as in the authors' code.
        """
        generator = Generator().manual_seed(seed)
        prompts = list(self.deep_context)
        if self._start is None:
            prompts.insert(0, self.context)
        else:
            self.context.copy_(self._start)
        for prompt in prompts:
            draw(prompt, nn.init.normal_, 0.0, 0.02, generator=generator)
        for _ in range(self.depth - 1 - len(self.deep_context)):
            # As if there were prompts for more blocks than the towers have: the numbers after them stay the same.
            draw(torch.empty_like(self.context), nn.init.normal_, 0.0, 0.02, generator=generator)
        shape = self.projection.weight.shape
        bound = shape[1] ** -0.5
        for projections in ([self.projection], list(self.deep_projections)):
            weight = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            bias = torch.empty(shape[0]).uniform_(-bound, bound, generator=generator)
            for projection in projections:
                projection.load_state_dict({"weight": weight, "bias": bias})

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Load a saved state; one of an earlier version may have prompts for blocks that no tower has."""
        own, deep = self.adapter_state(), ("deep_context.", "deep_projections.")
        unused = {name for name in state.keys() - own.keys() if name.startswith(deep) and self._is_unused(name)}
        super().load_adapter_state({name: value for name, value in state.items() if name not in unused})

    def _is_unused(self, name: str) -> bool:
        kind, number, *_ = name.split(".")
        return len(getattr(self, kind)) <= int(number) < self.depth - 1

    def image_features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return features [B, D] of images [B, 3, H, W] with the prompts among the image tokens."""
        blocks = backbone.blocks("vision")
        count = self.context_tokens
        deep = zip(blocks[1:], self.deep_projections, self.deep_context, strict=False)  # the shortest decides
        hooks = {block: _replace(projection(prompt), -count) for block, projection, prompt in deep}
        hooks[backbone.image_entrance] = _append(self.projection(self.context))
        # The prompts are removed after the last block, so that no pooling head sees them.
        with _inputs_changed(hooks), blocks[-1].register_forward_hook(_remove_last(count)):
            return backbone.encode_image(images)

    def text_features(self, backbone: Backbone, prompts: ClassPrompts, chunk: int | None = None) -> Tensor:
        """Return class text features [W, D], at most `chunk` classes per pass.

        Raises:
            DtrapError: A prompt is too long for the model; the message names the class.
        """
        length = self._longest(backbone, prompts)
        tokens = self._tokenize(backbone, prompts.class_names, prompts.tokens.device)[:, :length]
        first = self._first

        def encode(rows: Tensor) -> Tensor:
            embeddings = _with_rows(backbone.token_embedding(rows), self.context, first)
            deep = zip(backbone.blocks("text")[1:], self.deep_context, strict=False)
            with _inputs_changed({block: _replace(prompt, first) for block, prompt in deep}):
                return backbone.encode_text_embeddings(embeddings, rows)

        return encode_in_chunks(encode, tokens, chunk)

    def _prompt(self, class_name: str) -> str:
        return f"{self._words} {class_name.replace('_', ' ')}."

    def _tokenize(self, backbone: Backbone, class_names: tuple[str, ...], device: torch.device) -> Tensor:
        """Return tokens [W, L] on the device; cached until the classes change."""
        known = self._tokens
        if known is None or known[0] != class_names or known[1].device != device:
            with torch.inference_mode(False):
                prompts = {name: [self._prompt(name)] for name in class_names}
                known = class_names, tokenize_classes(prompts, backbone).to(device)
            if can_be_kept(known[1]):
                self._tokens = known
        return known[1]


def _inputs_changed(hooks: dict[nn.Module, Hook]) -> AbstractContextManager[None]:
    """Within it, the hooks change the modules' inputs."""
    return hooked(module.register_forward_pre_hook(hook) for module, hook in hooks.items())


def _with_rows(tokens: Tensor, rows: Tensor, first: int) -> Tensor:
    """Replace the tokens of [B, T, C] from position `first` (negative: from the end) by rows [n, C]."""
    first = first % tokens.shape[1]
    return torch.cat([tokens[:, :first], _repeated(rows, tokens), tokens[:, first + len(rows) :]], dim=1)


def _repeated(rows: Tensor, tokens: Tensor) -> Tensor:
    """Repeat rows [n, C] for each batch element of tokens [B, T, C], in their type: [B, n, C]."""
    # `shape`, not `len`: an exported graph has any number of images.
    return rows.to(tokens.dtype).expand(tokens.shape[0], -1, -1)


def _replace(rows: Tensor, first: int) -> Hook:
    return lambda module, inputs: (_with_rows(inputs[0], rows, first), *inputs[1:])


def _append(rows: Tensor) -> Hook:
    return lambda module, inputs: (torch.cat([inputs[0], _repeated(rows, inputs[0])], dim=1), *inputs[1:])


def _remove_last(count: int) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0][:, :-count], *output[1:])
        return output[:, :-count]

    return hook
