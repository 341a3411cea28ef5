"""Run a vision transformer with another attention in chosen blocks, without a change of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..errors import DtrapError

Attend = Callable[..., Tensor]
NO_GRID = "Pass grid=(rows, columns)."


class AttentionTrace(TorchFunctionMode):
    """What a transformer does between its patches and its feature.

    Place i is block i, and place len(blocks) is what follows the last block, such as an attention pool.

    Args:
        blocks: The blocks in order; each takes and returns tokens [B, T, C].
        grid: Rows and columns of patches; None for those of the last convolution before the blocks.
        spread_patches: Whether every patch behind the last block becomes an image of its own, whose tokens all equal
            this patch's.

    Attributes:
        attend: By place, the function of queries, keys and values [B, H, T, d] that replaces the attention there.
        patches: Rows and columns of the last run.
        tokens: The last block's output [B, T, C] in the last run.

    Raises:
        DtrapError: There are no blocks.
    """

    tokens: Tensor
    patches: tuple[int, int]

    def __init__(
        self, blocks: Sequence[nn.Module], grid: tuple[int, int] | None = None, *, spread_patches: bool = False
    ) -> None:
        super().__init__()
        self.blocks, self.grid, self.spread_patches = list(blocks), grid, spread_patches
        if not self.blocks:
            raise DtrapError(
                "relevance maps need the blocks of a vision transformer; a ResNet or another convolutional network has "
                "none. Use a model with a vision transformer, such as ViT-B-16-quickgelu."
            )
        self.attend: dict[int, Attend] = {}
        self._place: int | None = None
        self._done = -1
        self._replaced: set[int] = set()

    def run(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return the function's value of images [B, 3, H, W]; it runs the blocks once.

        Raises:
            DtrapError: It does not, or the tokens do not fit the patches.
        """
        self._place, self._done, self._images = None, -1, len(images)
        self._convolved, self._replaced = self.grid, set()
        with ExitStack() as self._stack:
            for place, block in enumerate(self.blocks):
                self._stack.enter_context(block.register_forward_pre_hook(self._enters(place)))
                self._stack.enter_context(block.register_forward_hook(self._leaves(place)))
            self._stack.enter_context(self)
            value = function(images)
        if self._done != len(self.blocks) - 1:
            raise DtrapError(f"the model ran {self._done + 1} of its {len(self.blocks)} blocks; expected all of them.")
        missing = sorted(self.attend.keys() - self._replaced - {len(self.blocks)})
        if missing:
            kind = type(self.blocks[missing[0]]).__name__
            raise DtrapError(
                f"block {missing[0]} ({kind}) computes its attention in its own way; expected "
                "scaled_dot_product_attention or nn.MultiheadAttention. In transformers: "
                "model.set_attn_implementation('sdpa')."
            )
        return value

    def check_attention(self, weights: Mapping[int, Tensor]) -> None:
        """Raise a DtrapError unless the attention [B, H, T, T] of the blocks is between all tokens of an image."""
        pool = weights.get(len(self.blocks))
        shapes = {place: (len(found), *found.shape[-2:]) for place, found in weights.items() if found is not pool}
        images, tokens, _ = next(iter(shapes.values()))
        whole = set(shapes.values()) == {(self._images, tokens, tokens)} and tokens >= self.tokens.shape[1]
        if not whole or (pool is not None and (len(pool), pool.shape[-1]) != (images, self.tokens.shape[1])):
            raise DtrapError(
                f"the attention of the blocks has the shapes {sorted(set(shapes.values()))}; expected the same for all "
                f"blocks, between all {self.tokens.shape[1]} tokens of each of {self._images} images (no windows)."
            )

    def patch_map(self, of_tokens: Tensor) -> Tensor:
        """Return the map [B, h, w] of values [B, T] of tokens."""
        return self._patches_of(of_tokens, self.tokens.shape[1]).unflatten(1, self.patches)

    def _patches_of(self, values: Tensor, tokens: int) -> Tensor:
        """Return the rows of the patches, which follow class and register tokens."""
        rows, columns = self.patches
        first = tokens - rows * columns
        return values[:, first:tokens]

    def _enters(self, place: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if place != self._done + 1:
                raise DtrapError(f"block {place} runs after block {self._done}; expected each block once, in order.")
            self._place = place
            if place == len(self.blocks) - 1:
                # Registered now, so that it comes behind the hooks of a tuner that removes its prompts again.
                self._stack.enter_context(module.register_forward_hook(self._finish))

        return hook

    def _leaves(self, place: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._place, self._done = None, place

        return hook

    def _finish(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Keep the last block's output, and replace it if patches are spread."""
        tokens = output[0] if isinstance(output, tuple) else output
        self.tokens, self._place = tokens, len(self.blocks)
        self.patches = self._checked_grid(tokens)
        if not self.spread_patches:
            return output
        prefix = tokens.shape[1] - self.patches[0] * self.patches[1]
        patches = self._patches_of(tokens, tokens.shape[1]).flatten(0, 1)
        # As many tokens as a mean over the patches, or the class token, is read from.
        spread = patches[:, None].expand(-1, prefix + 1, -1)
        return (spread, *output[1:]) if isinstance(output, tuple) else spread

    def _checked_grid(self, tokens: Tensor) -> tuple[int, int]:
        if tokens.dim() != 3 or len(tokens) != self._images:
            raise DtrapError(
                f"the last block returned {list(tokens.shape)} for {self._images} images; expected tokens [B, T, C]."
            )
        if self._convolved is None:
            raise DtrapError(f"no convolution before the blocks shows the grid of the patches. {NO_GRID}")
        rows, columns = self._convolved
        if rows * columns > tokens.shape[1]:
            raise DtrapError(
                f"the grid of {rows}x{columns} patches is larger than the {tokens.shape[1]} tokens behind the last "
                f"block. {NO_GRID}"
            )
        return rows, columns

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace attention at the places of `attend`, and note the grid of the last convolution before the blocks."""
        kwargs = kwargs or {}
        attend = self.attend.get(-1 if self._place is None else self._place)
        if attend is not None and func is functional.scaled_dot_product_attention:
            return self._attention(attend, *args, **kwargs)
        if attend is not None and func is functional.multi_head_attention_forward:
            return self._multi_head(attend, *args, **kwargs)
        result = func(*args, **kwargs)
        if func is functional.conv2d and self._done == -1 and self._place is None and self.grid is None:
            self._convolved = tuple(result.shape[-2:])
        return result

    def _attention(
        self,
        attend: Attend,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        self._replaced.add(-1 if self._place is None else self._place)
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        if is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        return attend(query, key, value, mask=attn_mask, scale=scale)

    def _multi_head(
        self,
        attend: Attend,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim_to_check: int,
        num_heads: int,
        in_proj_weight: Tensor | None,
        in_proj_bias: Tensor | None,
        bias_k: Tensor | None,
        bias_v: Tensor | None,
        add_zero_attn: bool,
        dropout_p: float,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Compute the attention of `nn.MultiheadAttention`, tokens first: [L, B, E]."""
        self._replaced.add(-1 if self._place is None else self._place)
        if bias_k is not None or add_zero_attn or options.get("key_padding_mask") is not None:
            raise DtrapError("nn.MultiheadAttention with added keys or a padding mask is not supported here.")
        weights: Any = [options.get(f"{name}_proj_weight") for name in "qkv"]
        weights = weights if in_proj_weight is None else in_proj_weight.chunk(3)
        biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
        q, k, v = (
            functional.linear(tokens, weight, bias).unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = options.get("attn_mask")
        if mask is not None:
            mask = mask.unflatten(0, (-1, num_heads)) if mask.dim() == 3 else mask
            mask = ~mask if mask.dtype == torch.bool else mask  # True forbids here, but allows in the other function
        heads = attend(q, k, v, mask=mask, scale=None)
        return functional.linear(heads.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias), None


def attention_weights(q: Tensor, k: Tensor, *, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Return softmax(q k^T scale) [B, H, T, S] of queries [B, H, T, d] and keys [B, H, S, d].

    Args:
        q: Queries.
        k: Keys.
        mask: True where attention is allowed, or values to add; None for none.
        scale: None for 1 / sqrt(d).
    """
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1)
