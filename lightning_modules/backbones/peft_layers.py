"""The layers of a model that peft has wrapped, of whatever type, found without importing peft."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import DtrapError, first_line


def adapter_layers(model: nn.Module) -> dict[str, Any]:
    """Return peft's wrapped layers by name: each has a `base_layer` and can be merged into it."""
    return {name: module for name, module in model.named_modules() if isinstance(_base(module), nn.Module)}


def refuse_adapters(model: nn.Module, identifier: str, tuner: str) -> None:
    """Raise a DtrapError if a model that a tuner is about to wrap has adapters already.

    Args:
        model: The backbone.
        identifier: Its name, for the message.
        tuner: The tuner's name, for the message.
    """
    adapted = adapter_layers(model)
    if adapted:
        raise DtrapError(
            f"{tuner}: {identifier} already has {len(adapted)} layers adapted by another tuner, which would stay "
            "active. Pass the same tuner to both modules, or load the backbone again for this one."
        )


def adapter_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by name that are parts of adapters: those in wrapped layers, but not in their base layers."""
    found: dict[str, nn.Module] = {}
    for name, layer in adapter_layers(model).items():
        for path, module in layer.named_modules():
            if path != "base_layer" and not path.startswith("base_layer."):
                found[".".join(part for part in (name, path) if part)] = module
    return found


def merge_adapters(model: nn.Module) -> None:
    """Merge all adapters into their base layers and put these in their places.

    Raises:
        DtrapError: peft cannot merge adapters of this type.
    """
    for name, layer in list(adapter_layers(model).items()):
        try:
            layer.merge()
        except (NotImplementedError, ValueError) as error:
            raise DtrapError(
                f"{type(layer).__module__.split('.')[2]}: peft cannot merge adapters of this type into the weights "
                f"({first_line(error)[:150]}). Use --form peft or onnx, or keep the adapter file."
            ) from error
        model.set_submodule(name, layer.get_base_layer())


def _base(module: nn.Module) -> Any:
    return module._modules.get("base_layer") if hasattr(module, "merge") else None
