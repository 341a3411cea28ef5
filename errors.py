"""The errors that a user can mend: shown as one short message, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class DtrapError(Exception):
    """A mistake in a config, a value, a file or the data; the message says what was expected and the remedy."""


def nearest(value: str, options: Iterable[str]) -> str:
    """Sentence that names the option most like `value`, or an empty string where none is near."""
    found = get_close_matches(value, list(options), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""
