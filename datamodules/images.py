"""Open image files of any kind as 8-bit RGB."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DtrapError
from ..files import open_file
from .formats import formats_for, why_unknown
from .pixels import Depth, Warn, check_pages, read_depth, read_sixteen_bits, to_rgb


class ImageError(DtrapError):
    """An image file that cannot be read; the message names the file and the reason."""


def open_image(
    path: str | os.PathLike[str], value_range: Sequence[float] | None = None, warn: Warn | None = None
) -> Image.Image:
    """Return a picture as 8-bit RGB, upright (EXIF rotation applied).

    Gray, palette, CMYK and other modes are converted. Values of more than 8 bits are scaled by the range that the file
    states, 16 bits if it states none, or by `value_range`; a result that is nearly black is a warning. Transparent
    pixels become white. Of an animation the first picture is used, with a warning.

    Args:
        path: The file.
        value_range: The values [black, white] of images with more than 8 bits or with floating-point pixels.
        warn: Takes a sentence and the file that shows it; None for Python's warnings.

    Raises:
        ImageError: The file is missing, truncated or not an image, has several pages or values of an unknown range, or
            has more pixels than Pillow accepts as harmless.
    """
    name, say = os.fspath(path), warn or _warn
    try:
        with open_file(path) as file, Image.open(file, formats=formats_for(path)) as image:
            check_pages(image, name, say)
            depth = read_depth(image, name)
            image.load()
            image = read_sixteen_bits(image, depth, name, value_range) if depth.color else image
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image, depth, value_range, lambda text: say(text, name))
    except FileNotFoundError:
        raise ImageError(f"Image {name} does not exist.") from None
    except UnidentifiedImageError:
        raise ImageError(f"Image {name} cannot be read: {why_unknown(path)}.") from None
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError(f"Image {name} cannot be read: {error}.") from error


def convert_image(
    image: Image.Image, name: str, value_range: Sequence[float] | None = None, warn: Warn | None = None
) -> Image.Image:
    """Return a picture in memory as `open_image` returns that of a file; the picture itself is not changed.

    Args:
        image: The picture.
        name: What messages call it.
        value_range: As for `open_image`.
        warn: As for `open_image`.

    Raises:
        ImageError: It cannot be decoded, or has values of an unknown range.
    """
    say = warn or _warn
    try:
        check_pages(image, name, say)
        file = str(getattr(image, "filename", ""))
        depth = read_depth(image, file) if os.path.isfile(file) else Depth()
        image.load()
        picture = read_sixteen_bits(image, depth, file, value_range) if depth.color else image
        return to_rgb(ImageOps.exif_transpose(picture), depth, value_range, lambda text: say(text, name))
    except MemoryError:
        raise
    except Exception as error:  # as in `open_image`
        raise ImageError(f"{name} cannot be read: {error}.") from error


def _warn(text: str, such_as: str) -> None:
    warnings.warn(f"{text}. Found in {such_as}.", stacklevel=3)
