"""The losses of the paper as pure functions of features.

Shapes, with the symbols of arXiv 2603.13341: N rows of image features (all views of all support images), M rows of
plain (unaugmented) support images, W classes, feature width D. Every function normalizes its features, computes cosines
in at least float32 even under autocast, and works on any device.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import expected_one_of

RelationForm = Literal["cosine", "softmax"]


def normalize(features: Tensor) -> Tensor:
    """Divide rows [B, D] by their L2 norm; half precision becomes float32, float64 stays.

    A row whose norm overflows becomes NaN: as zeros, which `F.normalize` returns, its cosines would look like numbers.
    """
    if features.dim() != 2:
        raise ValueError(f"features have the shape {list(features.shape)}; expected [rows, width].")
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    norms = features.norm(dim=-1, keepdim=True).clamp_min(1e-12)  # as F.normalize
    return features / norms.masked_fill(norms.isinf(), torch.nan).expand_as(features)


normalise = normalize  # the name in dtrap 0.1.0


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosines [A, B] of every row of `first` [A, D] with every row of `second` [B, D]."""
    # Autocast would compute the product in half precision: at a logit scale of 100 its rounding shifts logits by 0.1.
    with torch.autocast(first.device.type, enabled=False):
        return normalize(first) @ normalize(second).T


def cross_modal_loss(
    image_features: Tensor, text_features: Tensor, labels: Tensor, *, logit_scale: float = 100.0
) -> Tensor:
    """Compute L_vlm: the cross-entropy of the scaled cosines between images and class texts.

    Args:
        image_features: [N, D].
        text_features: [W, D]; row c is the text of class c.
        labels: [N], values in 0..W-1.
        logit_scale: tau, the factor on the cosines.

    Returns:
        The mean over the N rows, a scalar.
    """
    return F.cross_entropy(logit_scale * cosines(image_features, text_features), labels)


def draw_prototypes(rows: int, num_classes: int, generator: Generator | None = None) -> Tensor:
    """Draw the indices [W] of the prototype rows of L_ad, uniformly with replacement from the rows of all classes."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randint(rows, (num_classes,), generator=generator, device=device)


def anti_visual_loss(
    image_features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    prototype_indices: Tensor | None = None,
    logit_scale: float = 100.0,
    generator: Generator | None = None,
) -> Tensor:
    """Compute L_ad of SVL: the cross-entropy against prototypes that are arbitrary rows of the batch.

    Column c counts as class c although its prototype may belong to any class, which suppresses the learning of visual
    clusters. The gradient flows through both factors.

    Args:
        image_features: [N, D].
        labels: [N], values in 0..W-1.
        num_classes: W.
        prototype_indices: Rows [W] to use as prototypes; drawn uniformly with replacement if None.
        logit_scale: tau.
        generator: Random generator of the drawn indices; torch's global one if None.

    Returns:
        The mean over the N rows, a scalar.
    """
    if prototype_indices is None:
        drawn = draw_prototypes(len(image_features), num_classes, generator)
        prototype_indices = drawn.to(image_features.device, non_blocking=True)  # no wait for the device in each step
    if prototype_indices.shape != (num_classes,):
        raise ValueError(
            f"prototype_indices has the shape {list(prototype_indices.shape)}; expected [{num_classes}], one per class."
        )
    prototypes = image_features[prototype_indices.to(image_features.device)]
    return F.cross_entropy(logit_scale * cosines(image_features, prototypes), labels)


def visual_loss(
    image_features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    plain_features: Tensor | None = None,
    plain_labels: Tensor | None = None,
    logit_scale: float = 100.0,
) -> Tensor:
    """Compute L_v: the cross-entropy against each class's own prototype, which strengthens visual learning.

    The prototype is the mean of the class's normalized plain rows, normalized again (defined, but not used, in the
    authors' code). The negative of this loss is the paper's "-L_v".

    Args:
        image_features: [N, D].
        labels: [N], values in 0..W-1.
        num_classes: W; every class needs a plain row.
        plain_features: [M, D], the plain views; all N rows if None.
        plain_labels: [M], the classes of `plain_features`.
        logit_scale: tau.

    Returns:
        The mean over the N rows, a scalar.

    Raises:
        ValueError: Only one of `plain_features` and `plain_labels` is given, or a class has no plain row.
    """
    if (plain_features is None) != (plain_labels is None):
        raise ValueError("only one of plain_features and plain_labels is given; expected both or neither.")
    if plain_features is None or plain_labels is None:
        plain_features, plain_labels = image_features, labels
    rows = normalize(plain_features)
    membership = F.one_hot(plain_labels, num_classes).to(rows.dtype)
    counts = membership.sum(dim=0)
    if not bool((counts > 0).all()):
        absent = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(f"the classes {absent} have no plain row; expected at least one for each class.")
    with torch.autocast(rows.device.type, enabled=False):  # the mean of normalized rows in float32, as in `cosines`
        prototypes = membership.T @ rows / counts[:, None]
    return F.cross_entropy(logit_scale * cosines(image_features, prototypes), labels)


def noise_prototype_loss(
    image_features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    logit_scale: float = 100.0,
    generator: Generator | None = None,
) -> Tensor:
    """Compute the noise variant of L_ad: each call draws Gaussian rows as prototypes.

    Args, result: as in `anti_visual_loss`.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    noise = torch.randn(num_classes, image_features.shape[-1], generator=generator, device=device)
    noise = noise.to(normalize(image_features[:1]))
    return F.cross_entropy(logit_scale * cosines(image_features, noise), labels)


def visual_relations(image_features: Tensor, plain_features: Tensor) -> Tensor:
    """Return A^v [N, M]: the cosines of all image rows [N, D] with the plain rows [M, D]."""
    return cosines(image_features, plain_features)


def text_relations(text_features: Tensor, labels: Tensor, plain_labels: Tensor) -> Tensor:
    """Return A^t [N, M]: the cosines between the texts [W, D] of the classes `labels` [N] and `plain_labels` [M]."""
    return cosines(text_features, text_features)[labels[:, None], plain_labels[None, :]]


def fuse_relations(previous: Tensor, text: Tensor, progress: float) -> Tensor:
    """Return A^fuse [N, M] = (1 - p) A^v + p A^t.

    Args:
        previous: A^v [N, M] of the previous or of the current step; detached here.
        text: A^t [N, M].
        progress: p, 0 at the start of the suppressed stage and 1 at its end.
    """
    if previous.shape != text.shape:
        raise ValueError(
            f"relations differ in shape: A^v is {list(previous.shape)}, A^t is {list(text.shape)}; expected the same."
        )
    return (1.0 - progress) * previous.detach() + progress * text


def relation_alignment_loss(
    relations: Tensor, fused: Tensor, *, form: RelationForm = "cosine", temperature: float = 1.0
) -> Tensor:
    """Compute L_ra: the divergence between the visual relations and the fused ones.

    Args:
        relations: A^v [N, M], with gradient.
        fused: A^fuse [N, M].
        form: "cosine" is the authors' code: the mean of exp(A^fuse) * (A^fuse - A^v) over all entries. Without a
            softmax it may be negative, and its gradient is -exp(A^fuse)/(N*M). "softmax" is the paper's text:
            KL(A^v || A^fuse) of the row-wise softmax, summed over columns and averaged over rows.
        temperature: Divisor of both arguments of the softmax form.

    Returns:
        A scalar.
    """
    if relations.shape != fused.shape:
        raise ValueError(
            f"relations differ in shape: A^v is {list(relations.shape)}, A^fuse {list(fused.shape)}; expected the same."
        )
    if form == "cosine":
        return (fused.exp() * (fused - relations)).mean()
    if form == "softmax":
        visual = F.log_softmax(relations / temperature, dim=-1)
        target = F.log_softmax(fused / temperature, dim=-1)
        return F.kl_div(target, visual, reduction="batchmean", log_target=True)
    raise ValueError(f"form is {form!r}; {expected_one_of(form, get_args(RelationForm))}")
