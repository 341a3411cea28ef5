"""LoRA on the attention of the image tower, the text tower or both, through peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Any, Literal

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Generator, Tensor, nn

from ...errors import DtrapError, check_at_least, check_number, check_one_of
from ..backbones.base import Backbone, Tower
from ..backbones.peft_layers import refuse_adapters
from ..chunking import RowDropout
from .base import ENCODERS, Tuner, attach_once, draw
from .stacked import StackedLinear, stacked_parameter
from .target_layers import PROJECTIONS, chosen_attention

_ADAPTER = "default"


class LoRA(Tuner):
    """Low-rank adapters (Hu et al. 2022) with the paper's settings as defaults.

    Args:
        encoder: The towers with adapters.
        rank: Rank of each adapter.
        alpha: The scale is alpha / sqrt(rank) with rsLoRA, alpha / rank without.
        dropout: Probability of dropout before A.
        rslora: Rank-stabilized scale (Kalajdzievski 2023).
        projections: The projections of the attention with adapters: q, k, v and o(utput).
        blocks: Numbers of the blocks of each tower with adapters, negative ones from the end; None means all.

    Raises:
        DtrapError: An argument has no valid value.
    """

    name = "lora"
    merges_into_backbone = True
    side_by_side = True
    references = ("hu2022lora", "kalajdzievski2023rslora")
    libraries = ("peft",)

    @classmethod
    def cited(cls, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the keys of the references; that of rsLoRA only with its scale."""
        return cls.references if arguments.get("rslora", True) else cls.references[:1]

    def __init__(
        self,
        encoder: Literal["vision", "text", "both"] = "vision",
        rank: int = 16,
        alpha: float = 8.0,
        dropout: float = 0.25,
        rslora: bool = True,
        projections: Sequence[Literal["q", "k", "v", "o"]] = ("q", "k", "v"),
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_one_of("LoRA: encoder", encoder, ENCODERS)
        for projection in projections:
            check_one_of("LoRA: an entry of projections", projection, PROJECTIONS)
        check_at_least("LoRA: rank", rank, 1)
        check_number("LoRA: alpha", alpha, above=0)
        if not 0 <= dropout < 1:
            raise DtrapError(f"LoRA: dropout is {dropout}; expected a probability of at least 0 and below 1.")
        self.encoder = encoder
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.rslora = rslora
        self.projections = list(projections)
        self.blocks = None if blocks is None else list(blocks)
        self._layers: dict[str, LoraLayer] = {}

    @property
    def trains(self) -> frozenset[Tower]:
        """The towers with adapters."""
        return frozenset(ENCODERS[self.encoder])

    @attach_once
    def attach(self, backbone: Backbone) -> None:
        """Wrap the chosen projections with adapters, unless they are already wrapped.

        Raises:
            DtrapError: The settings choose no layer or a block that does not exist, this tuner is attached to another
                backbone, or the backbone has adapters of another tuner.
        """
        refuse_adapters(backbone, backbone.identifier, "LoRA")
        targets = [
            f"{layer}.{PROJECTIONS[projection]}"
            for tower in sorted(self.trains)
            for layer in chosen_attention("LoRA", backbone, tower, self.blocks)
            for projection in self.projections
        ]
        if not targets:
            raise DtrapError(
                f"LoRA: nothing to adapt with projections {self.projections} and blocks {self.blocks}: "
                "choose at least one of q, k, v, o and one block."
            )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            target_modules=targets,
        )
        inject_adapter_in_model(config, backbone, adapter_name=_ADAPTER)
        self._layers = {name: backbone.get_submodule(name) for name in targets}
        # peft's dropout would draw other masks for a batch in chunks.
        for position, layer in enumerate(self._layers.values()):
            layer.lora_dropout[_ADAPTER] = RowDropout(self.dropout, position)

    def reset(self, seed: int, num_classes: int) -> None:
        """Draw A from kaiming-uniform(a=sqrt 5) and set B to zero."""
        generator = Generator().manual_seed(seed)
        for layer in self._layers.values():
            draw(layer.lora_A[_ADAPTER].weight, nn.init.kaiming_uniform_, sqrt(5), generator=generator)
            nn.init.zeros_(layer.lora_B[_ADAPTER].weight)

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the matrices A [rank, in] and B [out, rank] of every adapted layer."""
        state: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            state[f"{name}.lora_A"] = layer.lora_A[_ADAPTER].weight
            state[f"{name}.lora_B"] = layer.lora_B[_ADAPTER].weight
        return state

    def train(self, mode: bool = True) -> LoRA:
        """Set the mode of the adapters' dropout, which is part of the backbone, not of this module."""
        super().train(mode)
        for layer in self._layers.values():
            layer.lora_dropout.train(mode)
        return self

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it, the adapters are off."""
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    @contextmanager
    def stacked(self, states: Sequence[Mapping[str, Tensor]]) -> Iterator[None]:
        """Within it, A is [E, rank, in] and B is [E, out, rank] in every adapted layer."""
        single = [
            (name, layers, layers[_ADAPTER])
            for layer_name, layer in self._layers.items()
            for name, layers in ((f"{layer_name}.lora_A", layer.lora_A), (f"{layer_name}.lora_B", layer.lora_B))
        ]
        for name, layers, own in single:
            layers[_ADAPTER] = StackedLinear(stacked_parameter([state[name] for state in states], own.weight))
        try:
            yield
        finally:
            for _, layers, own in single:
                layers[_ADAPTER] = own
