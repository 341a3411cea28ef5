"""Relevance maps: where in an image a vision transformer finds the text of a class.

Both maps work with any transformer whose blocks call `scaled_dot_product_attention` or `nn.MultiheadAttention`, such as
those of open_clip, timm and transformers: the attention is computed anew while the model runs, and no weight changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DtrapError, check_one_of
from .attention_trace import AttentionTrace, attention_weights

Similarity = Literal["query+key", "query", "key", "value"]


def patch_text_relevance(
    encode: Callable[[Tensor], Tensor],
    blocks: Sequence[nn.Module],
    images: Tensor,
    text_features: Tensor,
    *,
    similarity: Similarity = "query+key",
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Return the cosine of every image patch to every class text: [B, W, h, w].

    The attention of the last block is replaced by the similarity of the tokens themselves (SCLIP, Wang et al. 2023,
    arXiv 2312.01597). With scale 1 / sqrt(d) and the values V of a head:

        "query+key"  (softmax(Q Q^T scale) + softmax(K K^T scale)) V, as in SCLIP
        "query"      softmax(Q Q^T scale) V
        "key"        softmax(K K^T scale) V
        "value"      softmax(V V^T scale) V

    A patch's feature is then the feature of an image whose tokens behind the last block all equal this patch's. In CLIP
    that is the norm and the projection of the patch's token. It is defined in the same way for a mean and for an
    attention pool (SigLIP, PE-Core), which see one token only then.

    Args:
        encode: Returns image features [N, D] of images.
        blocks: The blocks of the image tower in order; each takes and returns tokens [B, T, C].
        images: [B, 3, H, W], normalized as the model expects.
        text_features: [W, D].
        similarity: What replaces the attention.
        grid: Rows and columns of patches; None for those of the last convolution before the blocks.

    Raises:
        DtrapError: The model has no such blocks, patches or attention.
    """
    check_one_of("patch_text_relevance: similarity", similarity, get_args(Similarity))
    trace = AttentionTrace(blocks, grid, spread_patches=True)
    trace.attend = {
        len(trace.blocks) - 1: lambda q, k, v, mask, scale: similarity_attention(q, k, v, similarity, scale=scale)
    }
    with torch.no_grad():
        features = trace.run(encode, images)
    rows, columns = trace.patches
    if features.dim() != 2 or len(features) != len(images) * rows * columns:
        raise DtrapError(
            f"encode returned {list(features.shape)} for {len(images)} images with {rows}x{columns} patches; expected "
            "a feature for each patch. Pass an `encode` whose features depend on the last block's output alone."
        )
    if features.shape[1] != text_features.shape[1]:
        raise DtrapError(
            f"the image features have the width {features.shape[1]} and the texts {text_features.shape[1]}; expected "
            "one width. Pass the features that the model compares."
        )
    cosines = functional.normalize(features, dim=-1) @ functional.normalize(text_features, dim=-1).T.to(features)
    return cosines.unflatten(0, (len(images), rows, columns)).permute(0, 3, 1, 2)


def similarity_attention(
    q: Tensor, k: Tensor, v: Tensor, similarity: Similarity = "query+key", *, scale: float | None = None
) -> Tensor:
    """Return the output [B, H, T, d] of an attention by similarity, whose scale is 1 / sqrt(d) if None.

    See `patch_text_relevance` for the similarities.
    """
    of_tokens = {"query+key": (q, k), "query": (q,), "key": (k,), "value": (v,)}[similarity]
    return torch.stack([attention_weights(tokens, tokens, scale=scale) for tokens in of_tokens]).sum(dim=0) @ v


def gradient_relevance(
    score: Callable[[Tensor], Tensor],
    blocks: Sequence[nn.Module],
    images: Tensor,
    *,
    first_block: int = -1,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Return the relevance of every image patch for a score, at least 0, by gradient-weighted attention: [B, h, w].

    From block to block, R <- R + mean over heads of (dscore/dA * A)^+ R, starting with the identity, where A is the
    block's attention [H, T, T] (Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6). The map is the row of R of
    the token that the feature is read from, or the mean of the rows if it is a mean of tokens. An attention pool is
    their attention to another modality: mean over heads of (dscore/dA * A)^+ times R, whose rows are first divided by
    their sums without the identity (equations 8 to 10). Values of two scores or models have no common unit.

    Args:
        score: Returns a number for each image [B], such as the logit of its class.
        blocks: The blocks of the image tower in order; each takes and returns tokens [B, T, C].
        images: [B, 3, H, W], normalized as the model expects.
        first_block: The block that the product starts with. -1 is the last one, as in the authors' notebook for CLIP;
            0 takes all.
        grid: Rows and columns of patches; None for those of the last convolution before the blocks.

    Raises:
        DtrapError: The model has no such blocks, patches or attention.
    """
    trace = AttentionTrace(blocks, grid)
    count = len(trace.blocks)
    if not -count <= first_block < count:
        raise DtrapError(f"first_block is {first_block}; expected -{count} to {count - 1}: there are {count} blocks.")
    weights: dict[int, Tensor] = {}

    def keep(place: int, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        found = attention_weights(q, k, **options)  # type: ignore[arg-type]
        found = found if found.requires_grad else found.requires_grad_()
        if place in weights and place == count:
            raise DtrapError("the model has several attention pools behind its blocks; expected one at most.")
        weights[place] = found
        return found @ v

    for place in range(first_block % count, count + 1):  # the last place is the pool's
        trace.attend[place] = lambda q, k, v, place=place, **options: keep(place, q, k, v, **options)
    with torch.inference_mode(False), torch.enable_grad():
        value = trace.run(score, images.clone() if images.is_inference() else images)
        if value.shape != (len(images),):
            raise DtrapError(f"score returned {list(value.shape)}; expected a number for each of {len(images)} images.")
        trace.check_attention(weights)
        traced = [*weights.values(), trace.tokens]
        gradients = torch.autograd.grad(value.sum(), traced, allow_unused=True)
    *of_weights, of_tokens = (
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(traced, gradients, strict=True)
    )
    relevances = {
        place: weighted_attention(found.detach(), gradient)
        for (place, found), gradient in zip(weights.items(), of_weights, strict=True)
    }
    pool = relevances.pop(count, None)
    every = propagate(list(relevances.values()))
    return trace.patch_map(_pooled(every, pool, of_tokens))


def weighted_attention(weights: Tensor, gradients: Tensor) -> Tensor:
    """Return the mean over heads of the positive part of gradient times attention: [B, H, T, S] to [B, T, S]."""
    return (gradients * weights).clamp(min=0).mean(dim=1)


def propagate(relevances: Sequence[Tensor]) -> Tensor:
    """Return R [B, T, T] of the `weighted_attention` [B, T, T] of every block, in order."""
    total = torch.eye(relevances[0].shape[-1]).to(relevances[0]).expand_as(relevances[0])
    for relevance in relevances:
        total = total + relevance @ total
    return total


def _pooled(every: Tensor, pool: Tensor | None, of_tokens: Tensor) -> Tensor:
    """Return the relevance [B, T] of each token to the feature, from R [B, T, T] and the pool's attention [B, q, T]."""
    tokens = of_tokens.shape[1]
    every = every[:, :tokens]  # those of prompts that are removed behind the last block are not read
    if pool is not None:
        own = every - torch.eye(*every.shape[1:]).to(every)
        sums = own.sum(dim=-1, keepdim=True)
        shares = own / sums.where(sums > 0, 1) + torch.eye(*every.shape[1:]).to(every)
        return (pool @ shares).sum(dim=1)
    read = (of_tokens != 0).any(dim=-1).to(every)
    read = read / read.sum(dim=-1, keepdim=True).clamp(min=1)
    return (read[:, None] @ every)[:, 0]
