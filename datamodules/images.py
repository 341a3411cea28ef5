"""Open image files of any kind as 8-bit RGB."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DtrapError
from ..files import open_file
from .formats import formats_for, why_unknown


class ImageError(DtrapError):
    """An image file that cannot be read; the message names the file and the reason."""


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Return a picture as 8-bit RGB, upright (EXIF rotation applied).

    Gray, palette, CMYK and other modes are converted. 16-bit values are divided by 256. Transparent pixels become
    white. The first frame of an animation is used.

    Raises:
        ImageError: The file is missing, truncated or not an image, has floating-point pixels (whose range is unknown),
            or has more pixels than Pillow accepts as harmless.
    """
    try:
        with open_file(path) as file, Image.open(file, formats=formats_for(path)) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except FileNotFoundError:
        raise ImageError(f"Image {os.fspath(path)} does not exist.") from None
    except UnidentifiedImageError:
        raise ImageError(f"Image {os.fspath(path)} cannot be read: {why_unknown(path)}.") from None
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError(f"Image {os.fspath(path)} cannot be read: {error}.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit modes clips at 255.
        gray = np.clip(np.asarray(image).astype(np.int64), 0, 65535) // 256
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")
