"""Image features of frozen towers on disk, shared by runs: memory-mapped safetensors files that may be deleted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DtrapError
from ..files import replacing, user_cache

logger = logging.getLogger(__name__)

FORMAT = "dtrap features 1"
MOST_BYTES = 10 * 2**30  # of all stores in a folder
LIMIT = "DTRAP_FEATURE_STORE_BYTES"  # environment variable with another limit
_SUM_BYTES, KEY_BYTES = 8, 16
_NAME = re.compile(r"[0-9a-f]{32}")
# When rows are written: so many, or the first after so long.
_ROWS, _SECONDS = 1024, 30.0


class FeatureStores:
    """The stores of a run, one for each backbone, data set, preprocessing and precision.

    Args:
        folder: Where they are; None for `dtrap/features` in the user's cache folder.
        foreign: Whether features of backbones that are not dtrap's own are stored, too.
        most_bytes: Size of all stores of the folder, beyond which the oldest are deleted; None for 10 GiB, or what the
            environment variable DTRAP_FEATURE_STORE_BYTES says.

    Attributes:
        read: Number of features that came from a store.
        encoded: Number of features that were computed because no store had them.
    """

    def __init__(self, folder: Path | None = None, foreign: bool = False, most_bytes: int | None = None) -> None:
        self.folder, self.foreign = folder or user_cache() / "features", foreign
        given = os.environ.get(LIMIT, "")
        self.most_bytes = most_bytes if most_bytes is not None else int(given) if given.isdigit() else MOST_BYTES
        self.read = self.encoded = 0
        self.writable = True
        self._open: dict[str, FeatureStore] = {}

    def of(self, identity: Mapping[str, Any]) -> FeatureStore:
        """Return the store of what an identity describes."""
        text = json.dumps(identity, sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()
        if name not in self._open:
            self._open[name] = FeatureStore(self, self.folder / name[:32], name, text)
        return self._open[name]

    def save(self, *, now: bool = False) -> None:
        """Write the features that were added, if they are many or old enough; `now` writes all."""
        for store in self._open.values():
            store.save(now=now)

    def warn(self, text: str) -> None:
        """Say what is wrong with the files."""
        logger.warning("Feature store: %s", text)

    def stop_writing(self, reason: str) -> None:
        """Say once why nothing more is written."""
        if self.writable:
            self.writable = False
            self.warn(f"{reason}; the run goes on, and what it computes from now on is not stored.")

    def make_room(self, needed: int) -> bool:
        """Delete the oldest stores that this run does not use until `needed` bytes fit; return whether they do."""
        sizes = {folder: _size(folder) for folder in _stores(self.folder)}
        total = sum(sizes.values()) + needed
        unused = [folder for folder in sizes if folder not in [store.folder for store in self._open.values()]]
        for folder in sorted(unused, key=_last_used):
            if total <= self.most_bytes:
                break
            _delete(folder)
            total -= sizes[folder]
        return total <= self.most_bytes

    @property
    def line(self) -> str:
        """Where the features of the run came from, for its end; empty if nothing was looked up."""
        total = self.read + self.encoded
        return f"Feature store: {self.read:,} of {total:,} image features read from {self.folder}" if total else ""


class FeatureStore:
    """Features by key, in files that are complete or absent; several processes may add files at a time.

    Args:
        stores: The stores of the run.
        folder: Folder of the files.
        identity: SHA-256 of what the features depend on; a file with another one is not read.
        description: The same as text, for people.
    """

    def __init__(self, stores: FeatureStores, folder: Path, identity: str, description: str) -> None:
        self.stores, self.folder, self.identity, self.description = stores, folder, identity, description
        self._files: dict[str, tuple[Tensor, Tensor]] = {}
        self._places: dict[bytes, tuple[str, int]] = {}
        self._fresh: dict[bytes, Tensor] = {}
        self._seen: set[str] = set()
        self._saved = time.monotonic()
        self.look_again()
        with suppress(OSError):
            os.utime(self.folder)

    def look_again(self) -> None:
        """Read the files that other processes have added."""
        try:
            names = {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(".safetensors")}
        except OSError:
            return
        for name in sorted(names - self._seen):
            if not name.startswith("."):
                self._read(name)
        self._seen |= names

    def _read(self, name: str) -> None:
        path = self.folder / name
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                if (told.get("format"), told.get("identity")) != (FORMAT, self.identity):
                    raise ValueError("it belongs to another store")
                keys, features, sums = (file.get_tensor(part) for part in ("keys", "features", "sums"))
            rows = len(features)
            fits = keys.shape == (rows, KEY_BYTES) and sums.shape == (rows, _SUM_BYTES) and features.dim() == 2
            if not (fits and keys.dtype == sums.dtype == torch.uint8 and features.is_floating_point()):
                raise ValueError("its tensors have other shapes or types")
        except FileNotFoundError:
            return
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            self._discard(name, str(error))
            return
        self._files[name] = features, sums
        raw = keys.numpy().tobytes()
        self._places |= {raw[i * KEY_BYTES : (i + 1) * KEY_BYTES]: (name, i) for i in range(rows)}

    def _discard(self, name: str, reason: str) -> None:
        """Forget and delete a damaged file; its features are computed again."""
        self.stores.warn(f"{self.folder / name} is damaged ({reason}); it is deleted and its features computed again.")
        self._files.pop(name, None)
        self._places = {key: place for key, place in self._places.items() if place[0] != name}
        with suppress(OSError):
            (self.folder / name).unlink()

    def __contains__(self, key: bytes) -> bool:
        return key in self._fresh or key in self._places

    def get(self, key: bytes) -> Tensor | None:
        """Return the feature [F] of a key, or None; a damaged one is reported and counts as absent."""
        if key in self._fresh:
            return self._fresh[key]
        place = self._places.get(key)
        if place is None:
            return None
        name, row = place
        features, sums = self._files[name]
        feature = features[row].clone()
        if bytes(sums[row].tolist()) != _checksum(key, feature):
            self._discard(name, "a checksum differs")
            return None
        return feature

    def put(self, key: bytes, feature: Tensor) -> None:
        """Add the feature [F] of a key; `save` writes it."""
        if self.stores.writable:
            self._fresh[key] = feature.detach().to("cpu", copy=True)

    def save(self, *, now: bool = False) -> None:
        """Write the features that were added, if they are many or old enough; `now` writes all."""
        fresh, waited = self._fresh, time.monotonic() - self._saved
        if not fresh or not (now or len(fresh) >= _ROWS or waited > _SECONDS):
            return
        self._fresh, self._saved = {}, time.monotonic()
        name = f"{time.time_ns():x}-{os.getpid()}-{secrets.token_hex(4)}.safetensors"
        if not self.stores.writable:
            return
        features = torch.stack(list(fresh.values()))
        # The header counts, too, so that many small files do not exceed the limit.
        if not self.stores.make_room(features.nbytes + len(fresh) * (KEY_BYTES + _SUM_BYTES) + 1024):
            self.stores.stop_writing(f"{self.stores.folder} would exceed {self.stores.most_bytes:,} bytes ({LIMIT})")
            return
        tensors = {
            "keys": _bytes([*fresh], KEY_BYTES),
            "features": features,
            "sums": _bytes([_checksum(key, feature) for key, feature in fresh.items()], _SUM_BYTES),
        }
        try:
            about = self.folder / "about.json"
            with replacing(about) as temporary:
                temporary.write_text(self.description, encoding="utf-8")
            with replacing(self.folder / name, errors=(OSError, SafetensorError)) as temporary:
                save_file(tensors, temporary, {"format": FORMAT, "identity": self.identity})
        except DtrapError as error:
            self.stores.stop_writing(str(error).splitlines()[0])
            return
        self._seen.add(name)
        self._read(name)


def _bytes(values: Sequence[bytes], width: int) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(values)), dtype=torch.uint8).view(-1, width)


def _checksum(key: bytes, feature: Tensor) -> bytes:
    content = feature.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(key + content, digest_size=_SUM_BYTES).digest()


def _stores(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [Path(entry.path) for entry in os.scandir(folder) if _NAME.fullmatch(entry.name) and entry.is_dir()]
    return []


def _files_of(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors"), *folder.glob("about.json")]


def _size(folder: Path) -> int:
    total = 0
    for path in _files_of(folder):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _last_used(folder: Path) -> float:
    with suppress(OSError):
        return folder.stat().st_mtime
    return 0.0


def _delete(folder: Path) -> None:
    """Delete the files of a store, and its folder if nothing else is in it."""
    for path in _files_of(folder):
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()
