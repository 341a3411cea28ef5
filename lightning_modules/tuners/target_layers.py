"""The layers of a tower's blocks that an adapter can be put on, by short names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...errors import DtrapError
from ..backbones.base import Backbone, Tower

PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
MLP = "mlp"


def chosen_attention(owner: str, backbone: Backbone, tower: Tower, blocks: Sequence[int] | None) -> list[str]:
    """Return the names of the attention layers of the chosen blocks of a tower.

    Args:
        owner: Name of the tuner for messages.
        backbone: The backbone.
        tower: The tower.
        blocks: Numbers of the blocks, negative ones from the end; None means all.

    Raises:
        DtrapError: The tower has no attention blocks, or a block does not exist.
    """
    layers = backbone.attention_layers(tower)
    if not layers:
        raise DtrapError(
            f"{owner}: the {tower} tower of {backbone.identifier} has no attention blocks to adapt (a ResNet?). "
            "Use another encoder setting or a transformer backbone."
        )
    if blocks is None:
        return layers
    wrong = [number for number in blocks if not -len(layers) <= number < len(layers)]
    if wrong:
        raise DtrapError(
            f"{owner}: block {wrong[0]} does not exist; the {tower} tower has the blocks 0 to {len(layers) - 1}. "
            "Give some of these: --model.tuner.blocks [0]"
        )
    return [layers[number] for number in sorted({number % len(layers) for number in blocks})]


def mlp_layers(backbone: Backbone, tower: Tower, attention: Sequence[str]) -> list[list[str]]:
    """Return the names of the Linear layers of each block's MLP, in their order, for blocks with these attentions."""
    names = {id(module): name for name, module in backbone.named_modules()}
    found = []
    for block in backbone.blocks(tower):
        prefix = f"{names[id(block)]}."
        own = [name for name in attention if name.startswith(prefix)]
        if own:
            linear = [f"{prefix}{name}" for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
            found.append([name for name in linear if not name.startswith(f"{own[0]}.")])
    return found
