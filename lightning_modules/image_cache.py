"""Features of a frozen image tower, each image encoded once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class FrozenImageFeatures:
    """Keeps the features of every row that it was asked for, until it is cleared.

    A row is known by its ids, which tell the image and its view.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def clear(self) -> None:
        """Forget everything, where other images may have the same ids."""
        self._rows = {}
        self._last = None

    def __call__(self, ids: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Features [B, F] of rows with `ids` [B, k], without gradient.

        Args:
            ids: What tells the rows.
            encode: Gets the numbers [m] of the rows that are not known yet, gives their features [m, F].
        """
        # The full batch has the very same tensor in every step: to look at its values would wait for the device.
        if self._last is not None and self._last[0] is ids:
            return self._last[1]
        keys = [tuple(row) for row in ids.tolist()]
        missing = [number for number, key in enumerate(keys) if key not in self._rows]
        # Tests run in inference mode, whose tensors no later training step may use.
        with torch.inference_mode(False), torch.no_grad():
            if missing:
                encoded = encode(torch.tensor(missing, device=ids.device))
                self._rows.update(zip([keys[number] for number in missing], encoded, strict=True))
            features = encoded if len(missing) == len(keys) else torch.stack([self._rows[key] for key in keys])
        self._last = ids, features
        return features
