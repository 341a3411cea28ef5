"""A cache of the features of a frozen image tower, so that each image is encoded once."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from .tracing import can_be_kept


class FrozenImageFeatures:
    """A cache of the features of rows, each encoded when it is first requested.

    A row is identified by its ids (the image and its view) within one source.

    Args:
        most_bytes: Total size up to which rows of a `while_room` call are cached.
    """

    def __init__(self, most_bytes: int = 2**30) -> None:
        self.most_bytes = most_bytes
        self._source: Hashable = None
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._bytes = 0
        self._last: tuple[Tensor, Tensor] | None = None

    def of(self, source: Hashable) -> FrozenImageFeatures:
        """Return this cache, emptied if `source` changed: in another episode the ids mean other images."""
        if source != self._source:
            self._source, self._rows, self._bytes, self._last = source, {}, 0, None
        return self

    def known(self, source: Hashable, ids: Tensor) -> Tensor | None:
        """Return the features [B, F] of rows that are all cached for `source`, else None; nothing changes."""
        keys = [tuple(row) for row in ids.tolist()] if source == self._source else [()]
        return torch.stack([self._rows[key] for key in keys]) if all(key in self._rows for key in keys) else None

    def __call__(self, ids: Tensor, encode: Callable[[Tensor], Tensor], *, while_room: bool = False) -> Tensor:
        """Return the features [B, F] of the rows with `ids` [B, k], without gradient.

        Args:
            ids: The identity of each row.
            encode: Maps the numbers [m] of the rows that are not cached to their features [m, F].
            while_room: Cache these rows only up to `most_bytes`.
        """
        # A full batch has the same tensor of ids in every step; reading its values would wait for the device.
        if self._last is not None and self._last[0] is ids:
            return self._last[1]
        keys = [tuple(row) for row in ids.tolist()]
        missing = [number for number, key in enumerate(keys) if key not in self._rows]
        # Lightning tests in inference mode, and a later training step must not use tensors that were made in it.
        with torch.inference_mode(False), torch.no_grad():
            fresh: dict[tuple[int, ...], Tensor] = {}
            if missing:
                encoded = encode(torch.tensor(missing, device=ids.device))
                fresh = dict(zip((keys[number] for number in missing), encoded, strict=True))
                room = not while_room or self._bytes + encoded.nbytes <= self.most_bytes
                if room and can_be_kept(encoded):
                    self._rows.update(fresh)
                    self._bytes += encoded.nbytes
            features = torch.stack([fresh[key] if key in fresh else self._rows[key] for key in keys])
        if not while_room and can_be_kept(ids, features):
            self._last = ids, features
        return features
