"""Features of a frozen image tower, each image encoded once."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class FrozenImageFeatures:
    """Keeps the features of the rows that it was asked for.

    A row is known by its ids, which tell the image and its view, within one source.

    Args:
        most_bytes: Rows to be kept only while there is room are kept up to this size in all.
    """

    def __init__(self, most_bytes: int = 2**30) -> None:
        self.most_bytes = most_bytes
        self._source: Hashable = None
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._bytes = 0
        self._last: tuple[Tensor, Tensor] | None = None

    def of(self, source: Hashable) -> FrozenImageFeatures:
        """Itself; forgets everything where the ids now mean something else, such as another episode's images."""
        if source != self._source:
            self._source, self._rows, self._bytes, self._last = source, {}, 0, None
        return self

    def __call__(self, ids: Tensor, encode: Callable[[Tensor], Tensor], *, while_room: bool = False) -> Tensor:
        """Features [B, F] of rows with `ids` [B, k], without gradient.

        Args:
            ids: What tells the rows.
            encode: Gets the numbers [m] of the rows that are not known yet, gives their features [m, F].
            while_room: Keep these rows only while there is room.
        """
        # The full batch has the very same tensor in every step: to look at its values would wait for the device.
        if self._last is not None and self._last[0] is ids:
            return self._last[1]
        keys = [tuple(row) for row in ids.tolist()]
        missing = [number for number, key in enumerate(keys) if key not in self._rows]
        # Tests run in inference mode, whose tensors no later training step may use.
        with torch.inference_mode(False), torch.no_grad():
            known = {} if len(missing) == len(keys) else {key: self._rows[key] for key in keys if key in self._rows}
            encoded = encode(torch.tensor(missing, device=ids.device)) if missing else None
            if encoded is not None:
                fresh = dict(zip([keys[number] for number in missing], encoded, strict=True))
                if not while_room or self._bytes + encoded.nbytes <= self.most_bytes:
                    self._rows.update(fresh)
                    self._bytes += encoded.nbytes
                known |= fresh
            if encoded is not None and len(missing) == len(keys):
                features = encoded
            else:
                features = torch.stack([known[key] for key in keys])
        if not while_room:
            self._last = ids, features
        return features
