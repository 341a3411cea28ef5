"""Find images that show the same picture: resized, compressed again or mirrored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .fingerprints import COLOR_SIDE, Fingerprint, unpacked

# Measured on 300 tiles of EuroSAT, 212 X-rays, 210 photos of skin and 420 of leaves, each with all others and their
# mirror images: different pictures differ in 70 of the 256 fine bits or more. Copies of half or a third of the size or
# of JPEG quality 30 differ in 28 or fewer, unless there is almost nothing to be seen on them, as on water from above.
FINE_BITS = 40
# The least in which different pictures differ is 8, and those have other colors.
COARSE_BITS = 6


# The hashes of pictures without structure mean nothing, and no hash knows colors. So the root mean square difference
# (of 255) of the reduced pictures has a limit. In brightness it is a least one and a part of their contrast, for like
# fine hashes and for like coarse ones; in color, which a JPEG of a small picture loses, it is more.
_LEAST, _PER_CONTRAST, _PER_COLOR, _MOST = (3.0, 1.0), (1.0, 0.15), 1.2, 40.0
_COMPARED = 1 << 22  # pairs whose bits are counted at a time
_TOGETHER = 1 << 14  # pairs whose colors are compared at a time
MOST_PAIRS = 100_000  # of a folder in which everything looks alike


class Pair(NamedTuple):
    """Two images that show the same picture.

    Attributes:
        first: Position of one.
        second: Position of the other, which comes later.
        bits: Number of bits of their fine hashes that differ, of 256.
        mirrored: Whether one is like the mirror image of the other.
    """

    first: int
    second: int
    bits: int
    mirrored: bool


def near_copies(
    images: Sequence[Fingerprint | None], progress: Callable[[int], object] = lambda done: None
) -> Iterator[Pair]:
    """Yield the pairs of images that show the same picture.

    Of images with equal fingerprints each is paired with the first one only, and only this one with images like them.

    Args:
        images: What is kept of each; None for one that cannot be read.
        progress: Called with the number of images that were compared with all others.
    """
    first: dict[tuple[bytes, bytes], int] = {}
    for position, image in enumerate(images):
        if image is not None:
            earlier = first.setdefault((image.hash, image.colors), position)
            if earlier != position:
                yield Pair(earlier, position, 0, False)
    positions = [*first.values()]
    if positions:
        kept = [image for image in (images[position] for position in positions) if image is not None]
        for one, other, bits, mirrored in _alike(kept, progress):
            yield Pair(positions[one], positions[other], bits, mirrored)


def _alike(images: Sequence[Fingerprint], progress: Callable[[int], object]) -> Iterator[tuple[int, int, int, bool]]:
    """Yield first, second, bits and whether one is mirrored, of images with different fingerprints."""
    colors = np.frombuffer(b"".join(image.colors for image in images), dtype=np.uint8)
    colors = colors.reshape(len(images), COLOR_SIDE, COLOR_SIDE, 3)
    plain, mirrored = unpacked([image.hash for image in images]), unpacked([image.mirrored for image in images])
    rows = max(1, _COMPARED // len(images))
    for start in range(0, len(images), rows):
        progress(start)
        fine, coarse = (
            [_different(signs[start : start + rows], other[start:]) for other in (signs, turned)]
            for signs, turned in zip(plain, mirrored, strict=True)
        )
        flips = fine[1] < fine[0]
        bits = np.minimum(*fine)
        found = np.argwhere(np.triu((bits <= FINE_BITS) | (np.minimum(*coarse) <= COARSE_BITS), 1))
        for part in np.array_split(found, len(found) // _TOGETHER + 1):
            one, other = part.T
            flip, count = flips[one, other], bits[one, other].astype(int)
            same = _same_colors(colors[start + one], colors[start + other], flip, count <= FINE_BITS)
            pairs = zip(start + one[same], start + other[same], count[same], flip[same], strict=True)
            yield from ((int(first), int(second), int(number), bool(turned)) for first, second, number, turned in pairs)


def _different(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the numbers [A, B] of bits that differ, of signs [A, L] and [B, L].

    Their product is the number of equal bits minus that of different ones.
    """
    return (first.shape[1] - first @ second.T) / 2


def _same_colors(
    first: npt.NDArray[Any], second: npt.NDArray[Any], flips: npt.NDArray[np.bool_], fine: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return for P pairs of reduced pictures [P, S, S, 3] whether their colors are alike.

    Args:
        first: One picture of each pair.
        second: The other one.
        flips: Whether the first one is to be mirrored.
        fine: Whether the fine hashes are alike; otherwise the coarse ones, and the colors have to be more so.
    """
    first, second = first.astype(np.float32), second.astype(np.float32)
    first[flips] = first[flips, :, ::-1]
    brightness = [pictures.mean(axis=3, keepdims=True) for pictures in (first, second)]
    color = [pictures - gray for pictures, gray in zip((first, second), brightness, strict=True)]
    contrasts = [[parts.std(axis=(1, 2)).max(axis=1) for parts in kind] for kind in (brightness, color)]
    off, off_color = (np.sqrt(np.square(one - other).mean(axis=(1, 2, 3))) for one, other in (brightness, color))
    least, per_contrast = (np.where(fine, *limits) for limits in (_LEAST, _PER_CONTRAST))
    like = off <= np.minimum(_MOST, least + per_contrast * np.minimum(*contrasts[0]))
    return like & (off_color <= least + _PER_COLOR * np.maximum(*contrasts[1]))
