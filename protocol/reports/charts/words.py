"""Names and numbers as text: names of any origin, means with intervals, lists."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...statistics import CORRECTED, CORRECTED_SHORT, Interval, mean_interval

Numbers = npt.NDArray[np.float64]

NO_NUMBER = "–"
LONGEST_NAME = 60  # characters in sentences and tables
NAMED = 3


def numbers(values: Any) -> Numbers:
    """Return values as float64 with the same shape; None, text and what is not finite becomes NaN."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        found = values.astype(np.float64)
    elif isinstance(values, (list, tuple, np.ndarray)) and any(
        isinstance(v, (list, tuple, np.ndarray)) for v in values
    ):
        found = np.array([numbers(row) for row in values])
    else:
        found = np.array([_number(value) for value in np.ravel(np.asarray(values, dtype=object))], dtype=np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def present(values: Any) -> Numbers:
    """Return the finite values as a flat list."""
    found = np.ravel(numbers(values))
    return found[np.isfinite(found)]


def interval_of(values: Any, resampled: float | None = None) -> Interval | None:
    """Return the mean of the finite values with its interval; None if there is none.

    Args:
        values: The values.
        resampled: n_test/n_train, if they are of repeats of held-out images.
    """
    found = present(values)
    return mean_interval(found.tolist(), resampled) if len(found) else None


def clean(name: object, longest: int = LONGEST_NAME) -> str:
    """Return a name as one line of text that any file can hold, its middle replaced by … if it is long.

    Control characters, halves of surrogate pairs and marks that turn the direction of writing become �.
    """
    kept = "".join(" " if c.isspace() else "\ufffd" if _unfit(c) else c for c in str(name))
    text = " ".join(kept.split()) or "(no name)"
    return text if len(text) <= longest else f"{text[: (longest - 1) // 2]}…{text[-(longest // 2) :]}"


def _unfit(character: str) -> bool:
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    return turns or unicodedata.category(character) in ("Cc", "Cs") or character in "\ufffe\uffff"


def unique(names: Iterable[object]) -> list[str]:
    """Return clean names; those that became equal get a number."""
    found: list[str] = []
    for name in names:
        text, count = clean(name), 2
        while text in found:
            text, count = f"{clean(name, LONGEST_NAME - 5)} ({count})", count + 1
        found.append(text)
    return found


def counted(number: int, noun: str) -> str:
    """Return such as "1 episode", "1,125 images" or "3 classes"."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def number(value: float | None, digits: int = 1, *, sign: bool = False) -> str:
    """Return a number with a fixed number of digits after the point, – for None and NaN."""
    if value is None or not math.isfinite(value):
        return NO_NUMBER
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    # a negative number that rounds to zero is written without its sign
    return text.replace("-", "+" if sign else "") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def mean_text(found: Interval | None, digits: int = 1, noun: str = "value", *, sign: bool = False) -> str:
    """Return a mean with its interval and count, such as "51.2 ± 0.6 (800 episodes)"."""
    if found is None:
        return NO_NUMBER
    count = counted(found.count, noun)
    mean = number(found.mean, digits, sign=sign)
    if found.identical:
        return f"{mean} (identical in {count})"
    if found.half_width is None:
        return f"{mean} ({count}, no interval)"
    few = ", too few" if found.too_few else ""
    kind = f", {CORRECTED_SHORT}" if found.kind == CORRECTED else ""
    return f"{mean} ± {number(found.half_width, digits)} ({count}{kind}{few})"


def listed(words: Sequence[str], most: int = NAMED) -> str:
    """Return "a, b and c"; beyond `most` words "a, b, c and 4 more"."""
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def sentences(*parts: str) -> str:
    """Join sentences, leaving out empty ones; each gets its full stop."""
    return " ".join(part if part.endswith((".", "!", "?")) else f"{part}." for part in parts if part)
