"""Batches that reach a module: those of dtrap's data modules, and those of any other loader, converted and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from ..errors import DtrapError
from .backbones.base import Backbone
from .tuners.base import Batch

Stage = Literal["train", "validate", "test", "predict"]

COLUMNS = {"images": ("images", "image"), "labels": ("labels", "label")}  # torchgeo's datasets have the second names
IDENTITY = ("view", "sample_id")
EXPECTED = (
    "Expected a dictionary with `images` (or `image`) and `labels` (or `label`), and `view` and `sample_id` for "
    "full-batch training; or a pair (images, labels)."
)
LOADERS: dict[Stage, tuple[str, ...]] = {
    # With a fit, so that validation images are not refused after the first epoch only.
    "train": ("train_dataloader", "val_dataloaders"),
    "validate": ("val_dataloaders",),
    "test": ("test_dataloaders",),
    "predict": ("predict_dataloaders",),
}
DEPTH = 8  # of loaders and data sets within each other
MARGIN = 0.05  # share of the range by which resampling may exceed it
BYTES = 10  # normalized images have smaller values


class IncomingBatches:
    """Takes the batches of one stage of a Trainer's run.

    Loaders of dtrap's data modules carry their preprocessing, which is compared with what the backbone needs; their
    batches are taken as they are. Batches of other loaders are converted and checked. On an accelerator the values of
    the first are checked at once and those of the others by `finish`, so that no step waits for the device.

    Args:
        backbone: What the images are for.
        classes: Number of classes.
        stage: What the batches are for; predictions need no labels.
        trainer: Its loaders are looked at; None for steps that are called by hand.

    Raises:
        DtrapError: A loader's images have another size or normalization than the backbone's.
    """

    def __init__(self, backbone: Backbone, classes: int, stage: Stage, trainer: Any) -> None:
        self.backbone, self.classes, self.labeled = backbone, classes, stage != "predict"
        loaders = [getattr(trainer, name, None) for name in LOADERS[stage]]
        found = [list(stated_preprocessing(loader)) for loader in loaders]
        for preprocessing in (entry for entries in found for entry in entries if entry is not None):
            check_preprocessing(preprocessing, backbone)
        # With a standard deviation of 0 a backbone says that it takes something else than normalized images.
        takes_images = min(backbone.image_std) > 0
        self.trusted = not takes_images or (bool(found[0]) and None not in found[0])
        self._first = True
        self._sound: Tensor | None = None

    def take(self, batch: Any) -> Batch:
        """Return a batch with `images` and, unless for predictions, `labels`.

        Raises:
            DtrapError: It has another structure, or images or labels are not what the backbone and the classes need.
        """
        converted = to_batch(batch, self.labeled)
        if self.trusted:
            return converted
        check_images(converted["images"], self.backbone)
        images = converted["images"].to(next(self.backbone.parameters()).dtype)
        labels = check_columns(converted, len(images)) if self.labeled else None
        if self._first or images.is_cpu:
            check_values(images, labels, self.classes)
        else:
            labels = self._check_later(images, labels)
        self._first = False
        return {**converted, "images": images} if labels is None else {**converted, "images": images, "labels": labels}

    def _check_later(self, images: Tensor, labels: Tensor | None) -> Tensor | None:
        sound = images.isfinite().all()
        if labels is not None:
            inside = labels.clamp(0, self.classes - 1)  # others would stop the device without a message
            sound, labels = sound & (inside == labels).all(), inside
        self._sound = sound if self._sound is None else self._sound & sound
        return labels

    def finish(self) -> None:
        """Raise a DtrapError if a batch since the last call had values that `take` did not wait for."""
        sound, self._sound = self._sound, None
        if sound is not None and not bool(sound):
            raise DtrapError(
                f"a batch of this epoch has images that are not finite, or labels outside of 0 to {self.classes - 1}. "
                "Check the data set and its transforms; on a CPU the first such batch stops the run."
            )


def stated_preprocessing(loader: Any, depth: int = DEPTH) -> Iterator[Any]:
    """Yield the preprocessing that each of the loaders within a loader states; None for one that states none."""
    if loader is None or depth == 0:
        return
    if isinstance(loader, CombinedLoader):
        loader = loader.iterables
    stated = getattr(loader, "preprocessing", None)
    if all(hasattr(stated, name) for name in ("image_size", "mean", "std")):
        yield stated
        return
    parts: list[Any] = []
    if isinstance(loader, Mapping):
        parts = list(loader.values())
    elif isinstance(loader, list | tuple):
        parts = list(loader)
    else:
        within = getattr(loader, "datasets", None) or getattr(loader, "dataset", None)
        parts = list(within) if isinstance(within, list | tuple) else [] if within is None else [within]
    if not parts:
        yield None
    for part in parts:
        yield from stated_preprocessing(part, depth - 1)


def check_preprocessing(stated: Any, backbone: Backbone) -> None:
    """Raise a DtrapError if a loader's images have another size, mean or standard deviation than the backbone's."""
    size, mean, std = backbone.image_size, backbone.image_mean, backbone.image_std
    pairs = list(zip((*stated.mean, *stated.std), (*mean, *std), strict=True))
    if stated.image_size != size or any(abs(here - needed) > 1e-4 for here, needed in pairs):
        raise DtrapError(
            f"the loader's images are made with {_input(stated.image_size, stated.mean, stated.std)}, but "
            f"{backbone.identifier} takes {_input(size, mean, std)}: set `data.preprocessing = "
            "Preprocessing.of(backbone)` before the loaders are made, or give the data module itself to the Trainer."
        )


def to_batch(batch: Any, labeled: bool) -> Batch:
    """Return a batch as a dictionary with the columns that dtrap knows.

    Args:
        batch: A dictionary with `images` or `image` and `labels` or `label`, or a pair (images, labels); without
            `labeled` also images alone.
        labeled: Whether labels are needed.

    Raises:
        DtrapError: It is something else.
    """
    if isinstance(batch, Mapping):
        return _of_mapping(batch, labeled)
    if isinstance(batch, Tensor) and not labeled:
        return {"images": batch}
    parts = list(batch) if isinstance(batch, list | tuple) else []
    if len(parts) == 2:
        return {"images": parts[0], "labels": parts[1]} if labeled else {"images": parts[0]}
    if len(parts) == 1 and not labeled:
        return {"images": parts[0]}
    shown = f"a {type(batch).__name__}" + (f" of {len(parts)}" if parts else "")
    raise DtrapError(f"the loader's batch is {shown}. {EXPECTED}")


def _of_mapping(batch: Mapping[str, Any], labeled: bool) -> Batch:
    columns: Batch = {}
    for name, names in COLUMNS.items():
        found = [key for key in names if key in batch]
        if len(found) > 1 or (not found and (labeled or name == "images")):
            what = f"both {' and '.join(found)}" if found else f"the keys {', '.join(map(str, batch)) or '(none)'}"
            raise DtrapError(f"the loader's batch has {what}. {EXPECTED}")
        if found and (labeled or name == "images"):
            columns[name] = batch[found[0]]
    return columns | {name: batch[name] for name in IDENTITY if name in batch}


def check_images(images: Any, backbone: Backbone) -> None:
    """Raise a DtrapError unless these are floating-point images [B, 3, S, S] of the backbone's size."""
    size = backbone.image_size
    statistics = _statistics(backbone.image_mean, backbone.image_std)
    needed = f"{backbone.identifier} takes floating-point images [B, 3, {size}, {size}], normalized with {statistics}"
    if not isinstance(images, Tensor):
        raise DtrapError(f"the images of the loader's batch are a {type(images).__name__}; {needed}.")
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size) or len(images) == 0:
        raise DtrapError(f"the images of the loader's batch are {list(images.shape)}; {needed}.")
    if not images.is_floating_point():
        raise DtrapError(f"the images of the loader's batch are {_type(images)}; {needed}.")


def check_columns(batch: Batch, rows: int) -> Tensor:
    """Return the labels as int64.

    Raises:
        DtrapError: Labels, or `view` or `sample_id` where given, are not whole numbers [B].
    """
    for name in ("labels", *(name for name in IDENTITY if name in batch)):
        column: Any = batch[name]
        if not isinstance(column, Tensor):
            raise DtrapError(
                f"`{name}` of the loader's batch is a {type(column).__name__}; expected a tensor [{rows}]."
            )
        if column.dim() == 2 and column.shape[1] > 1 and name == "labels":
            raise DtrapError(
                f"the labels of the loader's batch are {list(column.shape)}, such as one-hot or several labels an "
                f"image; expected class numbers [{rows}], as labels.argmax(dim=1) gives them of one-hot labels."
            )
        whole = not column.is_floating_point() and not column.is_complex() and column.dtype != torch.bool
        if column.shape != (rows,) or not whole:
            raise DtrapError(
                f"`{name}` of the loader's batch is a {_type(column)} tensor {list(column.shape)} for {rows} images; "
                f"expected whole numbers [{rows}]."
            )
    return batch["labels"].to(torch.int64)


def check_values(images: Tensor, labels: Tensor | None, classes: int) -> None:
    """Raise a DtrapError for images that are not finite, or labels outside of 0..W-1; waits for the device."""
    finite = images.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise DtrapError(
            f"{int((~finite).sum())} of {len(images)} images of the loader's batch have values that are NaN or "
            f"infinite, the first in row {row}. Check the files and the transforms."
        )
    if labels is not None and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise DtrapError(
            f"labels of the loader's batch go from {int(labels.min())} to {int(labels.max())}, but there are {classes} "
            f"classes; expected 0 to {classes - 1}, in the order of the class names."
        )


def tell_input(images: Tensor, backbone: Backbone) -> None:
    """State what images of other loaders have to be, and warn if the values of these cannot be."""
    mean, std = backbone.image_mean, backbone.image_std
    least, greatest = float(images.min()), float(images.max())
    low = min((0 - m) / s for m, s in zip(mean, std, strict=True))
    high = max((1 - m) / s for m, s in zip(mean, std, strict=True))
    margin = MARGIN * (high - low)
    expected = f"{backbone.identifier} expects images in [0, 1] normalized with {_statistics(mean, std)}"
    found = f"the values of the first batch go from {least:.2f} to {greatest:.2f}"
    if greatest > max(BYTES, 2 * high):
        rank_zero_warn(f"{expected}, but {found}, as of images in 0 to 255: divide by 255, then normalize.")
    elif least >= 0 and greatest <= 1 and low < 0:
        rank_zero_warn(f"{expected}, but {found}, as of images that are not normalized.")
    elif least < low - margin or greatest > high + margin:
        rank_zero_warn(f"{expected}, which gives {low:.2f} to {high:.2f}, but {found}. Check the normalization.")
    else:
        rank_zero_info(f"{expected}; {found}.")


def _statistics(mean: Sequence[float], std: Sequence[float]) -> str:
    means, stds = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    return f"mean ({means}) and std ({stds})"


def _input(size: int, mean: Sequence[float], std: Sequence[float]) -> str:
    return f"{size} x {size} pixels, {_statistics(mean, std)}"


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
