"""What is kept of each image to compare it with all others: a perceptual hash, that of its mirror image, and colors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...files import open_file
from ..image_check import DECODED_TOGETHER, full_fault
from ..images import open_image

# Sides of two hashes of one picture. The fine one tells apart what is similar: of the coarse one, X-rays of different
# patients differ in 6 bits, as a copy may from its original. The coarse one knows copies of smooth pictures, of which
# the details that the fine one looks at are rounding errors.
FINE, COARSE = 16, 8
COLOR_SIDE = 8
_SOURCE_SIDE = 64  # the library computes the hashes from a gray picture of this side
_DECODED_SIDE = 2 * _SOURCE_SIDE  # a JPEG decoder makes a smaller picture in a fraction of the time
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image.

    Attributes:
        width: Of the upright picture, in pixels.
        height: Of the upright picture, in pixels.
        mode: Pillow's mode of the file, such as "RGB", "L" or "I;16".
        hash: The packed bits of the perceptual hashes, the fine one first.
        mirrored: Those of the mirror image.
        colors: [COLOR_SIDE, COLOR_SIDE, 3] bytes of the reduced picture.
    """

    width: int
    height: int
    mode: str
    hash: bytes
    mirrored: bytes
    colors: bytes


def fingerprint(path: str, value_range: Sequence[float] | None = None) -> Fingerprint:
    """Decode an image and return what is kept of it.

    Raises:
        ImageError: It cannot be read, for the same reasons as in a run.
    """
    width, height, mode, picture = _quickly_read(path)
    if picture is None:  # not a plain JPEG file, or a damaged one: what a run says counts
        picture = open_image(path, value_range, lambda text, name: None)
        width, height = picture.size
        mode = mode or picture.mode
    gray = picture.convert("L").resize((_SOURCE_SIDE, _SOURCE_SIDE), Image.Resampling.LANCZOS)
    return Fingerprint(
        width,
        height,
        mode,
        _hash(gray),
        _hash(ImageOps.mirror(gray)),
        picture.resize((COLOR_SIDE, COLOR_SIDE), Image.Resampling.BOX).tobytes(),
    )


def _quickly_read(path: str) -> tuple[int, int, str, Image.Image | None]:
    """Return width, height, mode and a small RGB picture of a JPEG file; None for the picture of any other file."""
    mode = ""
    try:
        with open_file(path) as file, Image.open(file) as image:
            mode = image.mode
            if image.format != "JPEG" or mode not in ("L", "RGB"):
                return 0, 0, mode, None
            width, height = image.size
            image.draft("RGB", (_DECODED_SIDE, _DECODED_SIDE))
            image.load()
            if image.getexif().get(ExifTags.Base.Orientation) in _TURNED:
                width, height = height, width
            return width, height, mode, ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        return 0, 0, mode, None


def _hash(gray: Image.Image) -> bytes:
    hashes = (imagehash.phash(gray, side, _SOURCE_SIDE // side).hash for side in (FINE, COARSE))
    return b"".join(np.packbits(bits).tobytes() for bits in hashes)


def fingerprints(
    paths: Sequence[str], console: Console, value_range: Sequence[float] | None = None
) -> list[Fingerprint | str]:
    """Return the fingerprint of each image, or why it cannot be read; decoded in threads with a bar on a terminal."""

    def read(path: str) -> Fingerprint | str:
        found: list[Fingerprint] = []
        return full_fault(path, lambda: found.append(fingerprint(path, value_range))) or found[0]

    results: list[Fingerprint | str] = []
    with bar("decoding", len(paths), console) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            for start in range(0, len(paths), DECODED_TOGETHER):
                for result in pool.map(read, paths[start : start + DECODED_TOGETHER]):
                    results.append(result)
                    progress.advance(progress.task_ids[0])
    return results


@contextmanager
def bar(text: str, total: int, console: Console) -> Iterator[Progress]:
    """Yield a progress bar with one task; it is shown on a terminal only."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task("", total=total)
        yield progress


def unpacked(hashes: Sequence[bytes]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the fine [N, 256] and the coarse hashes [N, 64] as signs: +1 for a set bit, -1 for another one."""
    packed = np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(len(hashes), -1)
    signs = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1
    return signs[:, : FINE**2], signs[:, FINE**2 :]
