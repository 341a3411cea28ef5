"""The fixed views of a support image, drawn once per episode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tf

from ..errors import DtrapError, check_one_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ResizeMode = Literal["squash", "shortest", "longest"]
Interpolation = Literal["bilinear", "bicubic"]
TestPreprocessing = Literal["squash", "backbone"]
SQUASH: tuple[ResizeMode, Interpolation] = ("squash", "bilinear")  # what the paper's code does


@dataclass(frozen=True)
class Preprocessing:
    """Input of a backbone: size, normalization, and how a picture becomes square; the defaults are CLIP's.

    Attributes:
        image_size: Side S of the square input in pixels.
        mean: Mean per channel that is subtracted (images in [0, 1]).
        std: Standard deviation per channel that is divided by.
        resize_mode: "squash" resizes straight to S x S, as the paper's code does. "shortest" resizes the shorter side
            to S and crops the center, "longest" resizes the longer side and pads, as open_clip names them.
        interpolation: "bilinear" or "bicubic".
        evaluation: `resize_mode` and `interpolation` of the backbone's own evaluation transform.

    Raises:
        DtrapError: A value is not one of these.
    """

    image_size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resize_mode: ResizeMode = "squash"
    interpolation: Interpolation = "bilinear"
    evaluation: tuple[ResizeMode, Interpolation] = ("shortest", "bicubic")

    def __post_init__(self) -> None:
        for mode, interpolation in ((self.resize_mode, self.interpolation), self.evaluation):
            check_one_of("resize_mode", mode, get_args(ResizeMode))
            check_one_of("interpolation", interpolation, get_args(Interpolation))

    @classmethod
    def of(cls, backbone: object) -> Preprocessing | None:
        """Return the preprocessing of a backbone, or None if it does not state its own.

        Read are `image_size`, `image_mean`, `image_std`, and, where it has them, `image_resize` and
        `image_interpolation` of its evaluation transform. Pictures are squashed; `using("backbone")` follows the
        evaluation transform.
        """
        if not all(hasattr(backbone, name) for name in ("image_size", "image_mean", "image_std")):
            return None
        mean, std = (tuple(float(v) for v in getattr(backbone, name)) for name in ("image_mean", "image_std"))
        evaluation = getattr(backbone, "image_resize", "shortest"), getattr(backbone, "image_interpolation", "bicubic")
        return cls(int(backbone.image_size), mean, std, evaluation=evaluation)  # type: ignore[attr-defined, arg-type]

    def using(self, transform: TestPreprocessing) -> Preprocessing:
        """Return the same with pictures squashed, or resized as in the backbone's own evaluation transform."""
        mode, interpolation = SQUASH if transform == "squash" else self.evaluation
        return replace(self, resize_mode=mode, interpolation=interpolation)

    def resize(self, image: Image.Image) -> Image.Image:
        """Return the picture at S x S pixels."""
        size = (self.image_size, self.image_size)
        if image.size == size:
            return image
        interpolation = InterpolationMode(self.interpolation)
        if self.resize_mode == "squash":
            return image.resize(size, Image.Resampling[self.interpolation.upper()])
        if self.resize_mode == "shortest":
            return tf.center_crop(tf.resize(image, self.image_size, interpolation), list(size))
        from open_clip.transform import CenterCropOrPad, ResizeKeepRatio  # here, since no published model needs it

        return CenterCropOrPad(size)(ResizeKeepRatio(size, interpolation=interpolation, longest=1)(image))

    def to_tensor(self, image: Image.Image) -> Tensor:
        """Return the normalized float32 tensor [3, S, S] of an RGB picture of any size."""
        # In numpy, because torch would start its threads for every image, which takes longer than the work itself.
        channels = np.asarray(self.resize(image)).transpose(2, 0, 1)
        pixels = np.ascontiguousarray(channels).astype(np.float32)
        pixels /= np.float32(255)
        for channel, mean, std in zip(pixels, self.mean, self.std, strict=True):
            channel -= np.float32(mean)
            channel /= np.float32(std)
        return torch.from_numpy(pixels)


def _rotate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate by an angle uniform in [-45, 45] degrees; nearest pixel, black corners."""
    return tf.rotate(image, float(rng.uniform(-45.0, 45.0)), interpolation=InterpolationMode.NEAREST)


def _jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and color in this order, each by a factor uniform in [0.6, 1.4]."""
    for adjust in (tf.adjust_brightness, tf.adjust_contrast, tf.adjust_saturation):
        image = adjust(image, float(rng.uniform(0.6, 1.4)))
    return image


def _flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Flip horizontally with probability one half."""
    return tf.hflip(image) if rng.random() < 0.5 else image


_Step = Callable[[Image.Image, np.random.Generator], Image.Image]
_RECIPES: tuple[tuple[_Step, ...], ...] = ((), (_rotate, _jitter, _flip), (_rotate,), (_jitter,), (_flip,))
MAX_VIEWS = len(_RECIPES)


def check_views(views: int) -> None:
    """Raise a DtrapError unless the number of views is one of 1..5."""
    if not 1 <= views <= MAX_VIEWS:
        raise DtrapError(f"views is {views}; expected 1 (the plain image only) to {MAX_VIEWS}.")


def draw_views(
    image: Image.Image, preprocessing: Preprocessing, views: int, rng: np.random.Generator
) -> list[Image.Image]:
    """Return the views of `fixed_views` as V pictures of S x S pixels."""
    check_views(views)
    plain = preprocessing.resize(image)
    pictures = []
    for recipe in _RECIPES[:views]:
        view = plain
        for step in recipe:
            view = step(view, rng)
        pictures.append(view)
    return pictures


def fixed_views(image: Image.Image, preprocessing: Preprocessing, views: int, rng: np.random.Generator) -> Tensor:
    """Return the first V of the authors' five views of a picture.

    The picture is resized to S x S as the preprocessing says, then: (0) plain; (1) rotation, jitter, flip; (2)
    rotation; (3) jitter; (4) flip. Fewer views draw the same first numbers, so that view v does not depend on V.

    Args:
        image: RGB picture of any size.
        preprocessing: Size and normalization.
        views: Number of views V, 1 to 5.
        rng: Generator of angles, factors and flips.

    Returns:
        Normalized float32 tensor [V, 3, S, S].

    Raises:
        DtrapError: `views` is not one of 1..5.
    """
    return torch.stack([preprocessing.to_tensor(v) for v in draw_views(image, preprocessing, views, rng)])
