"""Images of a batch that are decoded when their pixels are first used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Private by the name of its module only: the guide to extending torch tells subclasses to use it.
from torch._C import DisableTorchFunctionSubclass
from torch.utils._pytree import tree_map_only

from .batches import Batch, Views
from .views import Preprocessing

# Answered without pixels.
_KNOWN = {
    Tensor.__len__,
    Tensor.dim,
    Tensor.element_size,
    Tensor.is_floating_point,
    Tensor.nelement,
    Tensor.numel,
    Tensor.size,
    *(
        getattr(Tensor, name).__get__
        for name in ("device", "dtype", "is_cpu", "is_cuda", "layout", "ndim", "requires_grad", "shape")
    ),
}


class Pixels:
    """The pixels of V*M rows, view slowest; an image is drawn when one of its rows is first used.

    Args:
        images: Position of each of the M images in the index.
        count: Views V of each image.
        drawn: The views of images that are decoded already, by position.
        draw: Returns the views of images, by position.
        preprocessing: Size and normalization.
    """

    def __init__(
        self,
        images: Sequence[int],
        count: int,
        drawn: dict[int, Views],
        draw: Callable[[list[int]], dict[int, Views]],
        preprocessing: Preprocessing,
    ) -> None:
        self.images, self.count, self.preprocessing = list(images), count, preprocessing
        self._drawn, self._draw, self._made = dict(drawn), draw, [False] * len(images)
        self._pixels: Tensor | None = None

    def of(self, rows: Tensor | None) -> Tensor:
        """Return the float32 pixels of rows, or of all."""
        images, size = len(self.images), self.preprocessing.image_size
        if self._pixels is None:
            self._pixels = torch.empty(self.count * images, 3, size, size)
        wanted = range(images) if rows is None else sorted(set((rows % images).tolist()))
        missing = [number for number in wanted if not self._made[number]]
        undrawn = [self.images[number] for number in missing if self.images[number] not in self._drawn]
        if undrawn:
            self._drawn |= self._draw(list(dict.fromkeys(undrawn)))
        for number in missing:
            for view, picture in enumerate(self._drawn[self.images[number]]):
                self._pixels[view * images + number] = self.preprocessing.to_tensor(picture)
            self._made[number] = True
        return self._pixels if rows is None else self._pixels[rows]


class LazyImages(Tensor):
    """Images [B, 3, S, S] without pixels until something other than their size, type or device is asked for.

    Rows that are chosen of it, and copies on another device or of another type, have no pixels either. To whatever
    reads it past torch's functions its values are NaN.
    """

    source: Pixels
    rows: Tensor | None
    whole: LazyImages | None
    _value: Tensor | None

    @classmethod
    def of(cls, source: Pixels, rows: Tensor | None, like: Tensor, whole: LazyImages | None = None) -> LazyImages:
        """Return images of a source.

        Args:
            source: Makes the pixels.
            rows: Numbers [B] of the rows, on the CPU; None for all.
            like: Has the device and type.
            whole: All rows with this device and type, whose pixels are used if they are there.
        """
        count = source.count * len(source.images) if rows is None else len(rows)
        size = source.preprocessing.image_size
        with DisableTorchFunctionSubclass(), torch.inference_mode(False):
            nothing = torch.full((1, 1, 1, 1), torch.nan, device=like.device, dtype=like.dtype)
            images = nothing.expand(count, 3, size, size).as_subclass(cls)
        images.source, images.rows, images.whole, images._value = source, rows, whole, None
        return images

    def pixels(self) -> Tensor:
        """Return the images as an ordinary tensor."""
        if self._value is None:
            with torch.inference_mode(False):
                if self.whole is not None and self.whole._value is not None and self.rows is not None:
                    self._value = self.whole._value[self.rows.to(self.device)]
                else:
                    self._value = self.source.of(self.rows).to(self.device, self.dtype)
        return self._value

    def _chosen(self, index: Any) -> LazyImages | None:
        """Return the rows that an index chooses; None if it chooses something else."""
        if isinstance(index, Tensor):
            if index.dim() != 1 or index.is_floating_point():
                return None
            index = index.cpu()
        elif not isinstance(index, slice):
            return None
        own = torch.arange(self.source.count * len(self.source.images)) if self.rows is None else self.rows
        whole = self if self.rows is None else self.whole
        return LazyImages.of(self.source, own[index], self, whole)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer what needs no pixels; make them for everything else."""
        given, first = kwargs or {}, args[0] if args else None
        if isinstance(first, LazyImages):
            if func in _KNOWN:
                with DisableTorchFunctionSubclass():
                    return func(*args, **given)
            if func is Tensor.__getitem__ and (chosen := first._chosen(args[1])) is not None:
                return chosen
            if func is Tensor.to:
                with DisableTorchFunctionSubclass():
                    like = func(*args, **given)
                same = (like.device, like.dtype) == (first.device, first.dtype)
                return first if same else LazyImages.of(first.source, first.rows, like)
        args, given = tree_map_only(LazyImages, LazyImages.pixels, (args, given))
        return func(*args, **given)


def lazy_batch(images: Sequence[Sequence[int]], pixels: Pixels) -> Batch:
    """Return what `to_batch` returns, with pixels that are made when they are used.

    Args:
        images: Positions of the images of class 0, 1, ...
        pixels: Makes the pixels of these images.
    """
    sample_id = torch.tensor(pixels.images, dtype=torch.int64)
    labels = torch.tensor([label for label, of_class in enumerate(images) for _ in of_class])
    return {
        "images": LazyImages.of(pixels, None, torch.empty(0)),
        "labels": labels.repeat(pixels.count),
        "view": torch.arange(pixels.count).repeat_interleave(len(sample_id)),
        "sample_id": sample_id.repeat(pixels.count),
    }
