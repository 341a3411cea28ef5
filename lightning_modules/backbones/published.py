"""Keys of the references of published weights, by what their names contain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LAION = r"laion(400m|2b|5b)"
_WEIGHTS = (
    (r"siglip-?2", ("tschannen2025siglip2",)),
    (r"pe-core", ("bolya2025perception",)),
    (_LAION, ("cherti2023scaling", "radford2021clip")),
    (r"(^| )openai(/|$)", ("radford2021clip",)),
)


def weights_cited(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys for the model and weights that a backbone was made with; empty where none is known."""
    name, pretrained = (str(arguments.get(key) or "") for key in ("name", "pretrained"))
    return next((keys for pattern, keys in _WEIGHTS if re.search(pattern, f"{name} {pretrained}".lower())), ())
