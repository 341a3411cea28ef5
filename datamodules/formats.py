"""Which image formats Pillow may decode here."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module

from PIL import Image

HEIF_ENDINGS = (".heic", ".heif", ".hif")
HEIF_PACKAGE = "pillow-heif"

# They start Ghostscript or another program, are videos, or are known to Pillow by name only.
_REFUSED = frozenset(("EPS", "WMF", "PDF", "MPEG", "FLI", "BUFR", "GRIB", "HDF5"))
_FIRST = ("JPEG", "PNG")  # tried first


def formats_for(path: str | os.PathLike[str]) -> list[str]:
    """Return the formats that a file may have, whatever its ending says; HEIC if its package is installed."""
    Image.init()
    if is_heif(path) and "HEIF" not in Image.OPEN:
        with suppress(ImportError):
            import_module("pillow_heif").register_heif_opener()
    return [*_FIRST, *(name for name in Image.OPEN if name not in _REFUSED and name not in _FIRST)]


def is_heif(path: str | os.PathLike[str]) -> bool:
    """Whether a file is called like an iPhone's picture."""
    return os.fspath(path).lower().endswith(HEIF_ENDINGS)


def why_unknown(path: str | os.PathLike[str]) -> str:
    """Return why Pillow does not know a file's format, to follow "cannot be read: "."""
    if is_heif(path) and "HEIF" not in Image.OPEN:
        return f"Pillow reads HEIC with a package only: pip install {HEIF_PACKAGE}"
    return "not an image that Pillow supports"
