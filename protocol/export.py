"""The formats of `dtrap export`: a tuned model that other programs load without dtrap.

A standalone folder holds the whole model as the backbone's library saves it, and the class text features. A folder in
peft's form holds the adapters only.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DtrapError
from ..files import to_json_values
from ..lightning_modules import FewShotClassifier, Objective
from ..lightning_modules.backbones.base import Backbone, Tower
from ..lightning_modules.backbones.export import load_plain
from ..lightning_modules.backbones.peft_layers import adapter_layers
from ..lightning_modules.losses import normalize
from ..lightning_modules.parts import describe
from ..lightning_modules.text_head import ClassPrompts
from ..lightning_modules.tuners import PEFT, Tuner
from ..parsing import parse_json
from .adapter_file import check_values, pack, read_tensors
from .adapters import (
    CLASS_FEATURES,
    EXPORT_CARD,
    PEFT_PREFIX,
    PEFT_SHARED,
    PEFT_WEIGHTS,
    AdapterCard,
    card_content,
)

# The standalone form


def save_class_features(module: FewShotClassifier, path: Path, card: AdapterCard) -> None:
    """Write the normalized class text features [W, D] with class names, logit scale and card."""
    with torch.no_grad():
        features = normalize(module.text_features()).float().cpu().contiguous()
    metadata = {
        "class_names": json.dumps(list(module.class_prompts.class_names), ensure_ascii=False),
        "logit_scale": repr(float(module.objective.logit_scale)),
    }
    path.write_bytes(pack({"class_features": features}, card_content(card), metadata, str(path)))


def with_trained_weights(module: FewShotClassifier) -> Backbone:
    """Return the backbone with the tuner's values of the parameters that are the backbone's own."""
    parameters = dict(module.backbone.named_parameters())
    with torch.no_grad():
        for name, value in module.tuner.adapter_state().items():
            if name in parameters:
                parameters[name].copy_(value)
    return module.backbone


class StoredClasses(Tuner):
    """A tuner without training that returns stored class text features.

    Args:
        class_features: [W, D], normalized.
    """

    name = "exported"
    class_features: Tensor

    def __init__(self, class_features: Tensor) -> None:
        super().__init__()
        self.register_buffer("class_features", class_features)

    @property
    def trains(self) -> frozenset[Tower]:
        """The text tower: its features are the stored ones, which the backbone alone cannot compute."""
        return frozenset({"text"})

    def attach(self, backbone: Backbone) -> None:
        """Do nothing."""

    def reset(self, seed: int, num_classes: int) -> None:
        """Do nothing."""

    def adapter_state(self) -> dict[str, Tensor]:
        """Return an empty state."""
        return {}

    def text_features(self, backbone: Backbone, prompts: ClassPrompts, chunk: int | None = None) -> Tensor:
        """Return the stored class features [W, D]."""
        return self.class_features


def load_exported(folder: Path, card: AdapterCard) -> FewShotClassifier:
    """Load the model of a standalone folder; no config is needed.

    Raises:
        DtrapError: Files are missing, damaged, or do not belong to the card.
    """
    path = folder / CLASS_FEATURES
    tensors, metadata = read_tensors(path)
    try:
        features = tensors["class_features"]
        names, scale = parse_json(metadata["class_names"]), float(metadata["logit_scale"])
        if not isinstance(names, list) or features.ndim != 2 or len(features) != len(names):
            raise ValueError(f"{list(features.shape)} values")
    except (KeyError, TypeError, ValueError) as error:
        raise DtrapError(
            f"{path}: not the class features that `dtrap export` writes ({error}). Run `dtrap export` again."
        ) from error
    if names != card.class_names:
        raise DtrapError(
            f"{path}: has the classes {', '.join(map(str, names))}, but {EXPORT_CARD} has "
            f"{', '.join(card.class_names)}. Keep the files of one export together."
        )
    backbone = load_plain(folder)
    check_values(dict(backbone.named_parameters()), str(folder), "Export an adapter whose training did not diverge.")
    module = FewShotClassifier(backbone, StoredClasses(features), Objective(logit_scale=scale))
    module.template, module.descriptions = card.template, card.prompts
    module.set_classes(card.class_names)
    return module


# The form of peft


def save_peft(module: FewShotClassifier, folder: Path, card: AdapterCard) -> AdapterCard:
    """Write adapter_config.json and adapter_model.safetensors with the names of the library's model.

    Returns:
        The card of these files. For a tuner that starts from the weights (PiSSA) it is that of an equal LoRA.

    Raises:
        DtrapError: The tuner has no adapters of peft.
    """
    backbone: Any = module.backbone
    layers = adapter_layers(backbone.model)
    if not layers:
        raise DtrapError(
            f"the tuner {module.tuner.name} changes the weights themselves, with no low-rank matrices that peft could "
            "load. Use --form plain."
        )
    inner = getattr(module.tuner, "inner", module.tuner)  # of FWT
    if isinstance(inner, PEFT):
        config, values, equal = inner.saved_as_peft()
        if equal is not None:
            card = _card_of(card, module, equal)
        state = {_in_library(name): value for name, value in values.items()}
    else:
        (config,) = backbone.peft_config.values()
        config = copy.copy(config)
        state = {
            f"{PEFT_PREFIX}{name}.{matrix}.weight": getattr(layer, matrix)[adapter].weight
            for name, layer in layers.items()
            for adapter in layer.active_adapters
            for matrix in ("lora_A", "lora_B")
        }
    # A regular expression, because peft takes a list as endings: "transformer..." would match "visual.transformer...".
    config.target_modules = "|".join(map(re.escape, layers))
    if getattr(config, "feedforward_modules", None):  # of IA3
        names = (name.removeprefix("model.") for name in config.feedforward_modules)
        config.feedforward_modules = "|".join(map(re.escape, names))
    config.inference_mode = True
    config.save_pretrained(str(folder))
    path = folder / PEFT_WEIGHTS
    path.write_bytes(pack(state, card_content(card), {"format": "pt"}, str(path)))
    return card


def _in_library(name: str) -> str:
    """Return the name in peft's file of a value with a name of the backbone; matrices of all layers have no layer."""
    layer, model, rest = name.partition("model.")
    return f"{PEFT_PREFIX}{rest}" if model and not layer else f"{PEFT_SHARED}{name}"


def _card_of(card: AdapterCard, module: FewShotClassifier, tuner: PEFT) -> AdapterCard:
    """Return the card with another tuner that has the same features."""
    outer = module.tuner
    if outer is not getattr(outer, "inner", outer):
        raise DtrapError(
            f"the tuner {outer.name} has no form of peft: its start is part of the weights. Use --form plain."
        )
    described = {**card.model, "tuner": describe(tuner)}
    return replace(card, tuner=tuner.name, settings=to_json_values(tuner.settings), model=described)
