"""What all Metric classes share: the features that they collect, and the texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .rows import check_features, check_labels


class FeatureMetric(Metric):
    """Collects image features and labels over batches and processes; a subclass measures them in `compute`.

    `update(image_features, labels)` takes the features [N, D] and the classes [N] of a batch. `set_texts` takes the
    texts of the classes once; `reset` keeps them. Half precision is kept as float32. Features are detached: use the
    function of the same measure where a gradient is needed.

    All features are kept until `reset`, since most measures compare images with each other. In a `MetricCollection`
    the classes share one copy.
    """

    is_differentiable = False
    full_state_update = False
    image_features: list[Tensor]
    labels: list[Tensor]
    texts: Tensor | None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("image_features", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")
        self.register_buffer("texts", None, persistent=False)

    def set_texts(self, text_features: Tensor) -> None:
        """Set the features [W, D] of the class texts; row c belongs to class c.

        The visual measures accept texts and do not use them, so that a collection can be treated alike.
        """
        self.texts = check_features(text_features, "text_features").detach().to(self.device)
        self._computed = None  # a value that torchmetrics has kept belongs to the former texts

    def update(self, image_features: Tensor, labels: Tensor) -> None:
        """Add a batch: features [N, D] and classes [N]."""
        features = check_features(image_features)
        known = self.texts if self.texts is not None else next(iter(self.image_features), None)
        if known is not None and features.shape[1] != known.shape[1]:
            raise ValueError(
                f"image_features has the shape {list(features.shape)}; expected [rows, {known.shape[1]}], as the "
                f"{'texts' if self.texts is not None else 'features before'}."
            )
        # Half precision becomes float32, so that processes and batches of mixed precision can be joined.
        wide = features.detach().to(torch.promote_types(features.dtype, torch.float32))
        labels = check_labels(labels, len(features))
        self.image_features.append(wide.to(self.device))
        self.labels.append(labels.to(self.device))

    def forward(self, image_features: Tensor, labels: Tensor) -> Any:
        """Add a batch and return its value; None for a batch without images."""
        if len(image_features):
            return super().forward(image_features, labels)
        self.update(image_features, labels)  # torchmetrics would lose what it has set aside when there is no value
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """Move to a device, but keep the types: half precision would round texts and features, and labels are whole."""

        def moved(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(moved, *args, **kwargs)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the images of another metric of this class; both must have the same texts, or this one has none yet."""
        other = getattr(incoming_state, "texts", None)
        if isinstance(other, Tensor) and self.texts is None:
            self.set_texts(other)
        if isinstance(other, Tensor) and self.texts is not None and not torch.equal(other.to(self.texts), self.texts):
            raise ValueError(f"two {type(self).__name__} with different texts; expected the same in set_texts.")
        super().merge_state(incoming_state)

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        """Gather the images of all processes, also where a process has none or features of another type."""
        features = [*self.image_features]
        if self.texts is not None:
            features.append(torch.zeros(0, self.texts.shape[1], device=self.device))
        if distributed.is_available() and distributed.is_initialized():
            group = kwargs.get("process_group") or self.process_group
            kinds: list[Any] = [None] * distributed.get_world_size(group)
            distributed.all_gather_object(kinds, {(each.dtype, each.shape[1]) for each in features}, group=group)
            # torchmetrics would send a vector without entries, or more bytes than the other process expects.
            features += [torch.zeros(0, width, dtype=dtype, device=self.device) for dtype, width in set().union(*kinds)]
        if features:
            self.image_features = [torch.cat(features)]
            self.labels = [torch.cat([torch.zeros(0, dtype=torch.long, device=self.device), *self.labels])]
        super()._sync_dist(*args, **kwargs)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one value or a list of values; see `torchmetrics.Metric.plot`.

        Args:
            val: What `compute` or `forward` returned, or a list of it; `compute()` if None.
            ax: Matplotlib axes; new ones if None.

        Returns:
            The figure and the axes.
        """
        return self._plot(val, ax)

    def _collected(self) -> tuple[Tensor, Tensor]:
        """All image features [N, D] and labels [N]."""
        if sum(map(len, self.image_features)) == 0:
            raise ValueError(f"{type(self).__name__} has no images; call update(image_features, labels) first.")
        return dim_zero_cat(self.image_features), dim_zero_cat(self.labels)

    def _collected_with_texts(self) -> tuple[Tensor, Tensor, Tensor]:
        """All image features [N, D], the texts [W, D] and the labels [N]."""
        if self.texts is None:
            raise ValueError(f"{type(self).__name__} has no texts; call set_texts(text_features) first.")
        features, labels = self._collected()
        return features, self.texts, labels
