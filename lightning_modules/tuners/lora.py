"""LoRA on the attention of the image tower, the text tower or both, through peft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Generator, Tensor, nn

from ...errors import DtrapError
from ..backbones.base import Backbone, Tower
from ..chunking import RowDropout
from .base import Tuner, another_backbone

_ADAPTER = "default"
_LAYERS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
_TOWERS: dict[str, frozenset[Tower]] = {
    "vision": frozenset({"vision"}),
    "text": frozenset({"text"}),
    "both": frozenset({"vision", "text"}),
}


class LoRA(Tuner):
    """Low-rank adapters (Hu et al. 2022) as the paper has them; the defaults are its settings.

    Args:
        encoder: Which towers get adapters.
        rank: Rank of each adapter.
        alpha: The scale is alpha / sqrt(rank) with rsLoRA, alpha / rank without.
        dropout: Probability of dropout before A.
        rslora: Rank-stabilized scale (Kalajdzievski 2023).
        projections: Which of the attention's q, k, v and o(utput) projections get adapters.
        blocks: Numbers of the blocks of each tower that get adapters, negative ones from the end; None is all.
    """

    name = "lora"
    merges_into_backbone = True

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
        if encoder not in _TOWERS:
            raise DtrapError(f"LoRA: encoder is {encoder!r}; expected one of {', '.join(_TOWERS)}.")
        unknown = [projection for projection in projections if projection not in _LAYERS]
        if unknown:
            raise DtrapError(f"LoRA: projections has {unknown[0]!r}; expected some of {', '.join(_LAYERS)}.")
        if rank < 1:
            raise DtrapError(f"LoRA: rank is {rank}; expected at least 1.")
        if not 0 <= dropout < 1:
            raise DtrapError(f"LoRA: dropout is {dropout}; expected a probability below 1.")
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
        return _TOWERS[self.encoder]

    def attach(self, backbone: Backbone) -> None:
        """Wrap the chosen projections with adapters; nothing is left to do where they are wrapped already.

        Raises:
            DtrapError: The settings choose no layer or a block that the tower does not have, this tuner is attached to
                another backbone, or another tuner to this backbone.
        """
        adapted = {module for module in backbone.modules() if isinstance(module, LoraLayer)}
        if self._layers:
            if not adapted.issuperset(self._layers.values()):
                raise another_backbone(self)
            return
        if adapted:
            raise DtrapError(
                f"LoRA: {backbone.identifier} already has {len(adapted)} layers adapted by another tuner, whose values "
                "would stay. Give both modules the same tuner, or load the backbone once more for this one."
            )
        targets = [
            f"{layer}.{_LAYERS[projection]}"
            for tower in sorted(self.trains)
            for layer in self._chosen(backbone, tower)
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
        for position, layer in enumerate(self._layers.values()):
            layer.lora_dropout[_ADAPTER] = RowDropout(self.dropout, position)

    def _chosen(self, backbone: Backbone, tower: Tower) -> list[str]:
        layers = backbone.attention_layers(tower)
        if not layers:
            raise DtrapError(
                f"LoRA: the {tower} tower of {backbone.identifier} has no attention blocks to adapt (a ResNet?). "
                "Use another encoder setting or a transformer backbone."
            )
        if self.blocks is None:
            return layers
        wrong = [number for number in self.blocks if not -len(layers) <= number < len(layers)]
        if wrong:
            raise DtrapError(
                f"LoRA: block {wrong[0]} does not exist; the {tower} tower has the blocks 0 to {len(layers) - 1}."
            )
        return [layers[number] for number in sorted({number % len(layers) for number in self.blocks})]

    def reset(self, seed: int, num_classes: int) -> None:
        """A from kaiming-uniform(a=sqrt 5), drawn in float32 on the CPU whatever the model's type; B zero."""
        generator = Generator().manual_seed(seed)
        for layer in self._layers.values():
            down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            start = torch.empty(down.shape)
            nn.init.kaiming_uniform_(start, a=sqrt(5), generator=generator)
            with torch.no_grad():
                down.copy_(start)
                up.zero_()

    def adapter_state(self) -> dict[str, Tensor]:
        """The matrices A [rank, in] and B [out, rank] of every adapted layer."""
        state: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            state[f"{name}.lora_A"] = layer.lora_A[_ADAPTER].weight
            state[f"{name}.lora_B"] = layer.lora_B[_ADAPTER].weight
        return state

    def train(self, mode: bool = True) -> LoRA:
        """Switch the adapters' dropout."""
        super().train(mode)
        for layer in self._layers.values():
            layer.lora_dropout.train(mode)
        return self

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it, the adapters add nothing."""
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)
