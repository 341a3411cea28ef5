"""The losses of the paper as pure functions on features.

Shapes, with the symbols of arXiv 2603.13341: N rows of image features (all views of all support images), M rows of
plain (un-augmented) support images, W classes, D the feature width. Every function normalises the features inside,
computes cosines in float32 or better whatever the autocast state, and works on any device.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

RelationForm = Literal["cosine", "softmax"]


def normalise(features: Tensor) -> Tensor:
    """Rows [B, D] divided by their L2 norm; half precision becomes float32, float64 stays."""
    if features.dim() != 2:
        raise ValueError(f"features must be [rows, width], found the shape {tuple(features.shape)}")
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    return F.normalize(features, dim=-1)


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of every row of `first` [A, D] with every row of `second` [B, D]: [A, B]."""
    with torch.autocast(first.device.type, enabled=False):
        return normalise(first) @ normalise(second).T


def cross_modal_loss(
    image_features: Tensor, text_features: Tensor, labels: Tensor, *, logit_scale: float = 100.0
) -> Tensor:
    """L_vlm: cross-entropy of the scaled cosines between images and class texts.

    Args:
        image_features: [N, D].
        text_features: [W, D], row c is the text of class c.
        labels: [N], values in 0..W-1.
        logit_scale: tau, the factor on the cosines.

    Returns:
        The mean over the N rows, a scalar.
    """
    return F.cross_entropy(logit_scale * cosines(image_features, text_features), labels)


def draw_prototypes(rows: int, num_classes: int, generator: Generator | None = None) -> Tensor:
    """Indices [W] of the prototype rows of L_ad: uniform over all rows, with replacement, of whatever class."""
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
    """L_ad of SVL: cross-entropy against prototypes that are arbitrary rows of the batch.

    Column c counts as class c although its prototype may be of any class, which disturbs the learning of visual
    clusters. The gradient flows through both factors.

    Args:
        image_features: [N, D].
        labels: [N], values in 0..W-1.
        num_classes: W.
        prototype_indices: [W] rows to take as prototypes; drawn uniformly with replacement where None.
        logit_scale: tau.
        generator: Source of the drawn indices.

    Returns:
        The mean over the N rows, a scalar.
    """
    if prototype_indices is None:
        drawn = draw_prototypes(len(image_features), num_classes, generator)
        prototype_indices = drawn.to(image_features.device, non_blocking=True)
    if prototype_indices.shape != (num_classes,):
        raise ValueError(
            f"prototype_indices must be [{num_classes}], one row for each class, found {tuple(prototype_indices.shape)}"
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
    """L_v: cross-entropy against each class's own prototype, which sharpens visual learning.

    The prototype is the mean of the class's normalised plain rows, normalised again (an unused line of the authors'
    code). Its negation is the paper's "-L_v".

    Args:
        image_features: [N, D].
        labels: [N], values in 0..W-1.
        num_classes: W; every class needs a plain row.
        plain_features: [M, D], the plain views; all N rows where None.
        plain_labels: [M], the classes of `plain_features`.
        logit_scale: tau.

    Returns:
        The mean over the N rows, a scalar.

    Raises:
        ValueError: Only one of `plain_features` and `plain_labels` is given, or a class has no plain row.
    """
    if (plain_features is None) != (plain_labels is None):
        raise ValueError("plain_features and plain_labels go together: give both or neither")
    if plain_features is None or plain_labels is None:
        plain_features, plain_labels = image_features, labels
    rows = normalise(plain_features)
    membership = F.one_hot(plain_labels, num_classes).to(rows.dtype)
    counts = membership.sum(dim=0)
    if not bool((counts > 0).all()):
        absent = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(f"no plain row of the classes {absent}: a class's own prototype needs at least one")
    with torch.autocast(rows.device.type, enabled=False):
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
    """The noise variant of L_ad: prototypes are Gaussian rows of unit length, drawn anew at each call.

    Args, result: as in `anti_visual_loss`.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    noise = torch.randn(num_classes, image_features.shape[-1], generator=generator, device=device)
    noise = noise.to(normalise(image_features[:1]))
    return F.cross_entropy(logit_scale * cosines(image_features, noise), labels)


def visual_relations(image_features: Tensor, plain_features: Tensor) -> Tensor:
    """A^v [N, M]: cosines of all image rows [N, D] with the plain rows [M, D]."""
    return cosines(image_features, plain_features)


def text_relations(text_features: Tensor, labels: Tensor, plain_labels: Tensor) -> Tensor:
    """A^t [N, M]: cosines between the texts [W, D] of the rows' classes `labels` [N] and of `plain_labels` [M]."""
    return cosines(text_features, text_features)[labels[:, None], plain_labels[None, :]]


def fuse_relations(previous: Tensor, text: Tensor, progress: float) -> Tensor:
    """A^fuse [N, M] = (1 - p) A^v + p A^t.

    Args:
        previous: A^v [N, M] of the previous or of the current step; detached here.
        text: A^t [N, M].
        progress: p, 0 at the start of the suppressed stage and 1 at its end.
    """
    if previous.shape != text.shape:
        raise ValueError(f"relations differ in shape: A^v is {tuple(previous.shape)}, A^t is {tuple(text.shape)}")
    return (1.0 - progress) * previous.detach() + progress * text


def relation_alignment_loss(
    relations: Tensor, fused: Tensor, *, form: RelationForm = "cosine", temperature: float = 1.0
) -> Tensor:
    """L_ra: divergence between the visual relations and the fused ones.

    Args:
        relations: A^v [N, M], with gradient.
        fused: A^fuse [N, M].
        form: "cosine", the authors' code: mean of exp(A^fuse) * (A^fuse - A^v) over all entries, without a softmax, so
            that it may be negative and its gradient is -exp(A^fuse)/(N*M). "softmax", the paper's text:
            KL(A^v || A^fuse) over row-wise softmax, summed over columns, mean over rows.
        temperature: Divides both arguments of the softmax form.

    Returns:
        A scalar.
    """
    if relations.shape != fused.shape:
        raise ValueError(f"relations differ in shape: {tuple(relations.shape)} and {tuple(fused.shape)}")
    if form == "cosine":
        return (fused.exp() * (fused - relations)).mean()
    if form == "softmax":
        visual = F.log_softmax(relations / temperature, dim=-1)
        target = F.log_softmax(fused / temperature, dim=-1)
        return F.kl_div(target, visual, reduction="batchmean", log_target=True)
    raise ValueError(f"form must be 'cosine' or 'softmax', found {form!r}")
