"""What the image features of a frozen tower depend on, and how they are computed so that nothing else matters."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from .backbones.base import Backbone
from .backbones.checkpoint import digest
from .feature_store import FeatureStore, FeatureStores
from .tracing import can_be_kept

# Rows of a pass. On a CPU a row alone takes no longer, and on an accelerator the rows of a pass of one shape do not
# influence each other; in passes of other sizes the last bits differ.
CPU_ROWS, DEVICE_ROWS = 1, 32
_PACKAGES = ("dtrap", "torch", "torchvision", "open_clip_torch", "transformers", "timm", "pillow", "numpy")
_KNOWN_CODE = ("dtrap.", "torch.", "torchvision.", "open_clip.", "transformers.", "timm.", "peft.")


class StoredImages:
    """The features of a module's frozen image tower, taken from a store as far as it has them.

    Args:
        module: The module.

    Attributes:
        stores: Features on disk; None for none.
        apart: Whether images are encoded apart from each other, so that a store changes no bit; a run does so.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.stores: FeatureStores | None = None
        self.apart = False
        self._offered: FeatureStore | None = None
        self._opened = False

    def __call__(self, images: Tensor, ids: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the backbone's features [B, D] of images, those of images that have files from the store.

        Whether there is a store changes nothing else: the rows are encoded the same way.

        Args:
            images: [B, 3, S, S].
            ids: [B, 2], position and view of each.
            encode: Encodes images, with the tuner out of the way.
        """
        module, device = self.module, images.device
        if not self.apart:
            return encode(images)
        episode = None if getattr(module.data_source, "streams", True) else getattr(module.data_source, "current", None)
        of_episode = getattr(episode, "feature_keys", None)
        keys = of_episode(ids.tolist()) if of_episode is not None and ids.shape[1] == 2 else None
        if keys is None or not can_be_kept(ids):
            return encode(images)
        size = rows_of_a_pass(device, module.image_chunk)
        store = self._store(device)
        return stored_features(keys, lambda rows: encode_apart(encode, images, rows, size), store, device)

    def offer(self, data: Any) -> None:
        """Let a data module ask which features are known, if the module needs no pixels of them."""
        if hasattr(data, "known_features"):
            wanted = self.stores is not None and "vision" not in self.module.tuner.trains
            data.known_features = self._knows if wanted else None
            self._opened = False

    def _knows(self, key: bytes) -> bool:
        if not self._opened:
            if self.module._trainer is None:
                return False
            # The type of autocast is that of the steps to come.
            with self.module.trainer.precision_plugin.forward_context():
                self._offered, self._opened = self._store(self.module.device), True
        return self._offered is not None and key in self._offered

    def _store(self, device: torch.device) -> FeatureStore | None:
        half = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        size, data = rows_of_a_pass(device, self.module.image_chunk), self.module.data_source
        return open_store(self.stores, self.module.backbone, data, device, half, size)


def rows_of_a_pass(device: torch.device, chunk: int | None) -> int:
    """Return how many rows are encoded at a time."""
    return CPU_ROWS if device.type == "cpu" else min(DEVICE_ROWS, chunk or DEVICE_ROWS)


def encode_apart(encode: Callable[[Tensor], Tensor], images: Tensor, rows: Sequence[int], size: int) -> Tensor:
    """Return the features [m, F] of m rows of images, in passes of `size` rows, so that none depends on the others."""
    parts = []
    for first in range(0, len(rows), size):
        own = list(rows[first : first + size])
        filled = own + own[-1:] * (size - len(own))
        parts.append(encode(images[torch.tensor(filled, device=images.device)])[: len(own)])
    return torch.cat(parts)


def stored_features(
    keys: Sequence[bytes | None],
    encode: Callable[[list[int]], Tensor],
    store: FeatureStore | None,
    device: torch.device,
) -> Tensor:
    """Return the features [B, F] of rows, from a store as far as it has them.

    Args:
        keys: The key of each row; None for a row that is not stored.
        encode: Returns the features of rows by number.
        store: The store; None computes all of them.
        device: Where the features are needed.
    """
    if store is None:
        return encode(list(range(len(keys))))
    if any(key is not None and key not in store for key in keys):
        store.look_again()
    found = [None if key is None else store.get(key) for key in keys]
    missing = [number for number, feature in enumerate(found) if feature is None]
    stores = store.stores
    stores.read, stores.encoded = stores.read + len(keys) - len(missing), stores.encoded + len(missing)
    if len(missing) == len(keys):
        features = encode(missing)
    else:
        known = [feature for feature in found if feature is not None]
        features = torch.empty(len(keys), *known[0].shape, dtype=known[0].dtype, device=device)
        features[[number for number, feature in enumerate(found) if feature is not None]] = torch.stack(known).to(
            device
        )
        if missing:
            features[missing] = encode(missing).to(features.dtype)
    if missing and can_be_kept(features):
        for number, feature in zip(missing, features[missing].cpu(), strict=True):
            key = keys[number]
            if key is not None and bool(feature.isfinite().all()):
                store.put(key, feature)
    return features


def open_store(
    stores: FeatureStores | None,
    backbone: Backbone,
    data: Any,
    device: torch.device,
    half: torch.dtype | None,
    size: int,
) -> FeatureStore | None:
    """Return the store of a backbone's features of a data set; None where they cannot be told from others.

    Args:
        stores: The stores of the run.
        backbone: The model, with frozen weights in their place.
        data: The data module.
        device: Where features are computed.
        half: The type of autocast, or None.
        size: Rows of a pass.
    """
    of_dtrap = type(backbone).__module__.startswith("dtrap.")
    # A stranger's backbone may leave out what only some tuners need.
    if stores is None or not (of_dtrap or (stores.foreign and callable(backbone.tower_parameters))):
        return None
    tower = _tower(backbone)
    own = all(f"{type(module).__module__}.".startswith(_KNOWN_CODE) for module in tower.values())
    if not (own or stores.foreign) or any(map(_is_changed, tower.values())):
        return None
    if any(value.requires_grad for value in _image_state(backbone).values()):
        return None  # somebody trains the tower without saying so
    identity = {
        "versions": {name: _version(name) for name in _PACKAGES},
        "data": {"class": _name(type(data)), "fingerprint": data.fingerprint, "range": data.value_range},
        "preprocessing": asdict(data.preprocessing),
        "backbone": _describe(backbone, tower, own),
        "device": _device(device),
        "precision": {
            "weights": str(next(backbone.parameters()).dtype),
            "autocast": str(half),
            "matmul": torch.get_float32_matmul_precision(),
            "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        },
        "rows of a pass": size,
    }
    return stores.of(identity)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _device(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "version": torch.version.cuda}
    # A sum is divided among the threads, and other instructions add in another order.
    capability = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    return {"type": device.type, "threads": torch.get_num_threads(), "capability": capability}


def _tower(backbone: Backbone) -> dict[str, nn.Module]:
    """Return the modules of a backbone but those of its text tower, by name."""
    texts = backbone.tower_parameters("text")
    inside = {id(parameter) for parameter in texts.values()}
    found = {}
    for name, module in backbone.named_modules():
        parameters = list(module.parameters())
        if ".lora_" not in f".{name}." and not (parameters and all(id(value) in inside for value in parameters)):
            found[name] = module
    return found


def _is_changed(module: nn.Module) -> bool:
    """Whether somebody has changed what a module computes without changing its weights."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    own = all(getattr(hook, "__module__", "").startswith("dtrap.lightning_modules.backbones.") for hook in hooks)
    return not own or "forward" in vars(module)


def _image_state(backbone: Backbone) -> dict[str, Tensor]:
    """Return parameters and buffers of a backbone but those of its text tower and of LoRA, by name."""
    texts = backbone.tower_parameters("text").keys()
    return {
        name.replace(".base_layer.", "."): value
        for name, value in [*backbone.named_parameters(), *backbone.named_buffers()]
        if name not in texts and ".lora_" not in name
    }


def _describe(backbone: Backbone, tower: dict[str, nn.Module], own: bool) -> dict[str, Any]:
    """Describe what a backbone's image features depend on."""
    state = _image_state(backbone)
    # Reading all weights takes as long as encoding an image or two: only after a change.
    signature = tuple((name, value.data_ptr(), *_sample(value)) for name, value in state.items())
    known = getattr(backbone, "_known_image_weights", None)
    if known is None or known[0] != signature:
        known = backbone._known_image_weights = signature, digest(state)  # type: ignore[assignment]
    layers = sorted({(name.replace(".base_layer", ""), _layer(module)) for name, module in tower.items()})
    code = "" if own else "".join(sorted({_source(type(module)) for module in tower.values()}))
    return {
        "identifier": backbone.identifier,
        "class": _name(type(backbone)),
        "weights": known[1],
        "layers": hashlib.sha256(str(layers).encode()).hexdigest(),
        "code": hashlib.sha256(code.encode()).hexdigest(),
    }


def _layer(module: nn.Module) -> str:
    kind = type(getattr(module, "base_layer", module)).__name__
    return f"{kind}({getattr(module, 'base_layer', module).extra_repr()})"


def _sample(value: Tensor) -> tuple[int, float]:
    """Return how often a tensor was changed, and a sum over a few values, for changes that torch does not count."""
    flat = value.detach().reshape(-1)
    few = flat[:: max(len(flat) // 16, 1)]
    changes = -1 if value.is_inference() else value._version
    return changes, float(few.double().sum()) if len(few) else 0.0


def _source(kind: type) -> str:
    if f"{kind.__module__}.".startswith(_KNOWN_CODE) or kind.__module__ not in sys.modules:
        return _name(kind)
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return _name(kind)
