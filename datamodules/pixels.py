"""Decoded pixels of any kind as 8-bit RGB: 16 bits, floating point, transparency, several pages."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile
from torchvision.io import ImageReadMode, decode_png

from ..errors import DtrapError

Warn = Callable[[str, str], None]  # a sentence, and the file that shows it
Values = tuple[float, float]  # of black and white

SIXTEEN_BITS = 65535
DARK = 64  # of 255: content of 14 bits or less in a file of 16 bits
BEYOND = 0.5  # share of pixels outside of black and white that is a warning: a window of CT cuts some off
REDUCED_OR_MASK = 0b101  # bits of TIFF's NewSubfileType: a smaller copy of another page, or its mask
NEW_SUBFILE_TYPE, MAXIMUM, LEAST_SAMPLE, GREATEST_SAMPLE = 254, 281, 340, 341
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "HEIF")
OPTION = "give the values of black and white, such as --data.value_range"


class Depth(NamedTuple):
    """What an image file says of its values, read before they are decoded.

    Attributes:
        values: The values of black and white, None if the file does not state them.
        significant_bits: Bits of the values before they were scaled to 16 (PNG), None if not stated.
        color: Whether it has 16 bits in each of several channels, of which Pillow keeps 8.
        white_is_zero: Whether low values are bright.
    """

    values: Values | None = None
    significant_bits: int | None = None
    color: bool = False
    white_is_zero: bool = False


def check_value_range(value_range: Sequence[float] | None) -> None:
    """Raise a DtrapError unless this is None or the values of black and white."""
    if value_range is None:
        return
    values = list(value_range) if isinstance(value_range, list | tuple) else []
    numbers = all(isinstance(value, int | float) and isfinite(value) for value in values)
    if len(values) != 2 or not numbers or not values[0] < values[1]:
        raise DtrapError(
            f"value_range is {value_range}; expected the values of black and white, such as --data.value_range "
            "[0,4095] for 12 bits."
        )


def check_pages(image: Image.Image, name: str, warn: Warn) -> None:
    """Refuse a TIFF with several pages, and report an animation, of which the first picture is used.

    Raises:
        ValueError: A page is neither a smaller copy of the first nor its mask.
    """
    if isinstance(image, TiffImageFile):
        pages = getattr(image, "n_frames", 1)
        for page in range(1, pages):
            image.seek(page)
            if not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & REDUCED_OR_MASK:
                raise ValueError(f"it has {pages} pages, such as bands; save one RGB picture in each file")
        if pages > 1:
            image.seek(0)
    elif image.format in ANIMATED and getattr(image, "is_animated", False):
        warn("only the first picture of an animation is used", name)


def read_depth(image: Image.Image, path: str) -> Depth:
    """Return what an opened file says of its values, before they are decoded."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    rawmode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    deep = _is_deep(image)
    color = not deep and ";16" in str(rawmode)
    if image.format == "PNG" and (deep or color):
        return Depth(significant_bits=_significant_bits(path), color=color)
    if not isinstance(image, TiffImageFile):
        return Depth(color=color)
    tags = image.tag_v2
    return Depth(
        values=_stated_values(tags, floats=image.mode == "F"),
        color=color,
        # Pillow inverts such pictures of 8 bits, but not of 16.
        white_is_zero=deep and tags.get(ExifTags.Base.PhotometricInterpretation) == 0,
    )


def read_sixteen_bits(image: Image.Image, depth: Depth, path: str, value_range: Sequence[float] | None) -> Image.Image:
    """Return a loaded picture of 16 bits in several channels with values that do not fill them scaled to 8 bits.

    Raises:
        ValueError: The values are needed, and the file is not a PNG, of which alone all bits can be read.
    """
    if value_range is None and (depth.significant_bits or 16) >= 16:
        return image  # Pillow has read the upper 8
    if image.format != "PNG":
        raise ValueError("value_range needs all 16 bits, but only 8 of a color TIFF can be read; save it as PNG")
    with open(path, "rb") as file:
        content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    values = decode_png(content, ImageReadMode.UNCHANGED).numpy().transpose(1, 2, 0)
    colors = values.shape[-1] - (values.shape[-1] + 1) % 2
    scaled = scale(values[..., :colors], *black_and_white(values[..., :colors], depth, value_range))
    opacity = (values[..., colors:] // 256).astype(np.uint8)  # which always has the full range
    pixels = np.ascontiguousarray(np.concatenate([scaled, opacity], axis=-1))
    mode = {2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[-1]]
    picture = Image.frombytes(mode, image.size, pixels.tobytes())
    if exif := image.getexif():
        picture.info["exif"] = exif.tobytes()
    return picture


def to_rgb(
    image: Image.Image, depth: Depth, value_range: Sequence[float] | None, warn: Callable[[str], None]
) -> Image.Image:
    """Return a loaded picture as 8-bit RGB.

    Args:
        image: The picture.
        depth: What `read_depth` returned.
        value_range: The values of black and white of more than 8 bits; None for the file's own.
        warn: Takes a sentence.

    Raises:
        ValueError: The values of black and white are unknown, or cannot be used.
    """
    if not _is_deep(image):
        picture = _on_white(image)
        if depth.color:
            _warn_if_dark(np.asarray(picture), warn)
        return picture
    values = np.asarray(image)
    black, white = black_and_white(values, depth, value_range)
    if np.mean((values < black) | (values > white)) > BEYOND:
        warn("many pixels are darker than black or brighter than white. Change --data.value_range")
    gray = scale(values, black, white)
    _warn_if_dark(gray, warn)
    return Image.fromarray(255 - gray if depth.white_is_zero else gray).convert("RGB")


def black_and_white(values: np.ndarray, depth: Depth, value_range: Sequence[float] | None) -> Values:
    """Return the values of black and white: as given, as the file states them, or those of 16 bits.

    Raises:
        ValueError: They are unknown, or pixels are not finite.
    """
    floats = values.dtype.kind == "f"
    if floats and not np.isfinite(values).all():
        raise ValueError("some of its floating-point pixels are not finite; save it with 8 or 16 bits")
    if value_range is not None:
        return value_range[0], value_range[1]
    if depth.values is not None:
        return depth.values
    if floats:
        raise ValueError(f"its pixels are floating-point numbers; save it with 8 or 16 bits, or {OPTION} [0,1]")
    least, greatest = int(values.min(initial=0)), int(values.max(initial=0))
    if least < 0 or greatest > SIXTEEN_BITS:
        raise ValueError(f"its values go from {least} to {greatest}; {OPTION} [{least},{greatest}]")
    bits = depth.significant_bits or 16
    # By PNG's rule the bits are the upper ones. Low bits within the stated number mean that they were not shifted.
    if 8 < bits < 16 and greatest < 2**bits and (values & (2 ** (16 - bits) - 1)).any():
        return 0, 2**bits - 1
    return 0, SIXTEEN_BITS


def scale(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Return the values as bytes, black as 0 and white as 255; those outside of both are cut off."""
    if values.dtype.kind in "iu" and float(black).is_integer() and float(white).is_integer():
        inside = np.clip(values.astype(np.int64), int(black), int(white)) - int(black)
        # 256 steps of equal width, so that 16 bits are divided by 256.
        return (inside * 256 // int(white - black + 1)).astype(np.uint8)
    shares = (np.clip(values.astype(np.float64), black, white) - black) / (white - black)
    return (255 * shares + 0.5).astype(np.uint8)


def _is_deep(image: Image.Image) -> bool:
    """Whether a picture has one channel of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def _stated_values(tags: Any, *, floats: bool) -> Values | None:
    """Return the values of black and white of a TIFF: those of 12 bits, or a greatest value of whole bits."""
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    if 8 < bits < 16:
        return 0, 2**bits - 1
    least, greatest, maximum = (_first(tags.get(tag)) for tag in (LEAST_SAMPLE, GREATEST_SAMPLE, MAXIMUM))
    if floats:
        return (least, greatest) if least is not None and greatest is not None and least < greatest else None
    # Other numbers than 2**n - 1 are the brightest pixel of this picture alone, by which it must not be scaled.
    whole = [value for value in (greatest, maximum) if value in [2**n - 1 for n in range(9, 16)]]
    return (0, whole[0]) if whole and whole[0] is not None else None


def _first(value: Any) -> float | None:
    value = value[0] if isinstance(value, tuple) and value else value
    return float(value) if isinstance(value, int | float) else None


def _significant_bits(path: str) -> int | None:
    """Return the content of a PNG's sBIT chunk, which Pillow skips; None without it."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"sBIT":
                return max(file.read(length), default=None)
            if kind in (b"PLTE", b"IDAT"):  # sBIT comes before these
                return None
            file.seek(length + 4, 1)
    return None


def _warn_if_dark(picture: np.ndarray, warn: Callable[[str], None]) -> None:
    if picture.max(initial=0) < DARK:
        warn(
            "images with more than 8 bits come out dark. If their values do not fill the file's range, give those of "
            "black and white, such as --data.value_range [0,4095]"
        )
