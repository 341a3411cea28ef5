"""Tip-Adapter: a cache of the support features in addition to the class texts, with fixed or trained keys."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from ...errors import DtrapError, check_number
from .. import losses
from ..backbones.base import Backbone, Tower
from ..finite import predicted_classes
from .base import TaskData, Tuner

_GRID_START = 0.1


class TipAdapter(Tuner):
    """Tip-Adapter (Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022).

    With the M support images as keys K [M, D] and their one-hot classes as values L [M, W], the logits of a normalized
    image feature x are tau * cos(x, t) + alpha * exp(-beta * (1 - x K^T)) L. Nothing is trained, so there is no L_ad
    and no L_ra.

    A key is the mean of an image's unnormalized features over its views, normalized afterwards. Rows with the same
    sample id are views of one image; without sample ids each row is a separate image.

    Args:
        alpha: Weight of the cache; 0 is zero-shot.
        beta: Sharpness of the cache.
        search_scale: Upper ends (B, A) of the grids from which beta and alpha are chosen on a validation split, if
            there is one; None keeps the given values.
        search_step: Sizes (nb, na) of these grids: beta is 0.1 + i * (B - 0.1) / nb for i = 0 ... nb - 1, and alpha
            likewise, so the upper ends are excluded. Among equal accuracies the smallest beta is chosen, then the
            smallest alpha.

    Raises:
        DtrapError: `alpha` or `beta` is negative, or a grid is empty.

    Attributes:
        keys: K [M, D]; without rows before `prepare_task`.
        values: L [M, W].
    """

    name = "tip-adapter"
    references = ("zhang2022tipadapter",)
    needs_task = True
    trains: frozenset[Tower] = frozenset()
    keys: Tensor
    values: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        search_scale: tuple[float, float] | None = None,
        search_step: tuple[int, int] = (200, 20),
    ) -> None:
        super().__init__()
        check_number(f"{type(self).__name__}: alpha", alpha, least=0)
        check_number(f"{type(self).__name__}: beta", beta, least=0)
        for end in search_scale or ():
            check_number(f"{type(self).__name__}: an end of search_scale", end)
        if search_scale is not None and min(search_scale) <= _GRID_START:
            raise DtrapError(
                f"{type(self).__name__}: search_scale is {tuple(search_scale)}; expected the upper ends of beta and "
                f"alpha, both above {_GRID_START}, or null for no search."
            )
        if min(search_step) < 1:
            raise DtrapError(
                f"{type(self).__name__}: search_step is {tuple(search_step)}; expected at least one beta and one alpha."
            )
        self.start = alpha, beta
        self.search_scale = search_scale
        self.chooses = search_scale is not None
        self.search_step = search_step
        self.register_buffer("keys", torch.empty(0, 0))
        self.register_buffer("values", torch.empty(0, 0))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    # The cache

    def attach(self, backbone: Backbone) -> None:
        """Allocate an empty cache of the feature width, unless there is one; `reset` empties it."""
        if self.keys.shape[1] != backbone.feature_dim:
            empty = next(backbone.parameters()).detach().new_empty(0, backbone.feature_dim)
            self._set_cache(empty, empty.new_empty(0, 0))

    def _set_cache(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def reset(self, seed: int, num_classes: int) -> None:
        """Empty the cache and restore the given alpha and beta; nothing is random."""
        keys = self.keys.detach()
        self._set_cache(keys.new_empty(0, keys.shape[1]), keys.new_empty(0, num_classes))
        alpha, beta = self.start
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)

    def prepare_task(self, task: TaskData) -> None:
        """Fill the cache with the support rows; the keys are in ascending order of the sample ids."""
        rows = cast(Tensor, task.encoded)
        rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        labels = task.labels
        if task.sample_id is not None:
            order = task.sample_id.argsort(stable=True)
            views = task.sample_id.unique(return_counts=True)[1].tolist()
            rows = torch.stack([of_image.mean(dim=0) for of_image in rows[order].split(views)])
            labels = torch.stack([of_image[0] for of_image in labels[order].split(views)])
        values = nn.functional.one_hot(labels, len(task.text_features)).to(rows.dtype)
        self._set_cache(losses.normalize(rows), values)

    # State

    def make_room(self, state: dict[str, Tensor]) -> None:
        """Allocate the cache for the saved numbers of images and classes."""
        if not {"keys", "values"} <= state.keys():
            return
        keys, values = state["keys"], state["values"]
        if (self.keys.shape, self.values.shape) != (keys.shape, values.shape) and keys.shape[1] == self.keys.shape[1]:
            own = self.keys.detach()
            self._set_cache(own.new_empty(keys.shape), own.new_empty(values.shape))

    # From features to logits

    def _affinity(self, image_features: Tensor) -> Tensor:
        """Return the cosines [B, M] of the images with the keys."""
        x = losses.normalize(image_features)
        return x @ self.keys.to(x.dtype).T

    def _cache_logits(self, affinity: Tensor, beta: Tensor | float) -> Tensor:
        return (-beta * (1 - affinity)).exp() @ self.values.to(affinity.dtype)

    def logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
        """Return the logits tau * cos(x, t) + alpha * exp(-beta * (1 - x K^T)) L [B, W]."""
        zero_shot = super().logits(image_features, text_features, logit_scale)
        with torch.autocast(image_features.device.type, enabled=False):
            return zero_shot + self.alpha * self._cache_logits(self._affinity(image_features), self.beta)

    # Search

    def grids(self) -> tuple[list[float], list[float]]:
        """Return the values of beta and of alpha to choose from.

        Raises:
            DtrapError: `search_scale` is None.
        """
        if self.search_scale is None:
            raise DtrapError(f"{type(self).__name__}: search_scale is null; expected the upper ends of beta and alpha.")
        beta, alpha = (
            [i * (end - _GRID_START) / steps + _GRID_START for i in range(steps)]
            for end, steps in zip(self.search_scale, self.search_step, strict=True)
        )
        return beta, alpha

    def search(self, image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float) -> Tensor:
        """Count the correct images [nb, na] of a validation split for each pair of beta and alpha."""
        betas, alphas = self.grids()
        zero_shot = super().logits(image_features, text_features, logit_scale)
        with torch.autocast(image_features.device.type, enabled=False):
            affinity = self._affinity(image_features)
            caches = (self._cache_logits(affinity, beta) for beta in betas)
            return torch.stack(
                [
                    torch.stack([(predicted_classes(zero_shot + alpha * cache) == labels).sum() for alpha in alphas])
                    for cache in caches
                ]
            )

    def choose(self, image_features: Tensor, text_features: Tensor, labels: Tensor, logit_scale: float) -> None:
        """Choose the first of the most accurate pairs; beta is the outer loop."""
        betas, alphas = self.grids()
        correct = self.search(image_features, text_features, labels, logit_scale)
        beta, alpha = divmod(int(correct.argmax()), len(alphas))  # argmax returns the first of equal counts
        self.beta.fill_(betas[beta])
        self.alpha.fill_(alphas[alpha])


class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: Tip-Adapter with trained keys, which start as the cache and are not normalized again.

    alpha and beta are fixed during training. Image features are constant, so L_ad and L_ra are too. The authors keep
    the epoch that is best on their test set; `dtrap.callbacks.KeepBest` does so on a validation split.

    Args, errors, attributes: as in `TipAdapter`.
    """

    name = "tip-adapter-f"
    learning_rate = 1e-3
    side_by_side = True

    def _set_cache(self, keys: Tensor, values: Tensor) -> None:
        super()._set_cache(nn.Parameter(keys), values)

    def optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> Optimizer:
        """Return AdamW with eps 1e-4 and weight decay 0.01, as in the authors' code."""
        return torch.optim.AdamW(parameters, lr=learning_rate, eps=1e-4, weight_decay=1e-2)

    def scheduler(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> LRScheduler:
        """Return a cosine to 0 over all steps, stepped every step."""
        return CosineAnnealingLR(optimizer, T_max=total_steps)
