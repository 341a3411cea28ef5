"""`dtrap export`: a tuned model for other programs, which need neither dtrap nor, in the plain form, peft."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from peft.tuners.lora import LoraLayer
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier, Objective
from ..lightning_modules.backbones.base import Backbone, Tower
from ..lightning_modules.backbones.export import load_plain, save_plain
from ..lightning_modules.losses import normalise
from ..lightning_modules.text_head import ClassPrompts
from ..lightning_modules.tuners import Tuner
from .adapters import (
    CONFIG,
    EXPORT_CARD,
    PEFT_PREFIX,
    PEFT_WEIGHTS,
    AdapterCard,
    card_content,
    find_adapters,
    is_plain,
    load_adapter,
    only_adapter,
    read_card,
    without_description_file,
)
from .configuration import DtrapCLI, build_module, build_part, to_plain
from .results import cannot_write

CLASS_FEATURES = "class_features.safetensors"
ANOTHER_FOLDER = "or name another folder with --output."


def export(arguments: list[str], console: Console) -> int:
    """Write a saved adapter as a folder for other programs; see `dtrap export --help`.

    Raises:
        DtrapError: The config or the adapter is not as expected, the tuner cannot be exported in this form, or the
            folder cannot be written.
    """
    cli, adapters = find_adapters(arguments, "export")
    config, output = cli.config, Path(cli.config.output)
    adapter = only_adapter(cli, adapters)
    if is_plain(adapter):
        raise DtrapError(f"--adapter {adapter} is a plain checkpoint already. Copy the folder instead.")
    card = read_card(adapter)
    _check_output(output, adapter)
    _check_tuner(build_part(Tuner, config.model.tuner))
    module = build_module(without_description_file(config, card))
    load_adapter(adapter, module, card)
    with _appearing(output) as folder:
        if config.form == "peft":
            _save_peft(module, folder)
        else:
            _save_class_features(module, folder / CLASS_FEATURES)
            settings = config.model.backbone.get("init_args") or {}
            save_plain(_with_trained_weights(module), folder, settings.get("name"))
        (folder / EXPORT_CARD).write_bytes(card_content(card))
        (folder / CONFIG).write_text(_run_config(cli), encoding="utf-8")
        for path in folder.iterdir():  # safetensors are written for their owner alone
            path.chmod((folder / CONFIG).stat().st_mode)
    console.print(f"{card.tuner} on {card.backbone}, {len(card.class_names)} classes: {output}", soft_wrap=True)
    return 0


def _check_output(output: Path, adapter: Path) -> None:
    if adapter.is_dir() and output.resolve().is_relative_to(adapter.resolve()):
        raise DtrapError(f"--output {output} is inside the adapter's folder {adapter}. Name a folder elsewhere.")
    if output.is_dir() and any(output.iterdir()):
        raise DtrapError(f"--output {output} exists and is not empty. Empty it, {ANOTHER_FOLDER}")
    if output.exists() and not output.is_dir():
        raise DtrapError(f"--output {output} is a file; expected a folder that is empty or new.")


def _check_tuner(tuner: Tuner) -> None:
    if not tuner.merges_into_backbone:
        raise DtrapError(
            f"the tuner {tuner.name} cannot be exported: what it learned is not in the weights of the backbone but in "
            "parts of its own on the way from image or prompt to logits, which a checkpoint of open_clip, transformers "
            "or peft has no place for. Keep the adapter file; `dtrap predict` works from it."
        )


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its place when all is written, and is gone otherwise."""
    place = output.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if place.is_dir():
            place.rmdir()
        os.replace(temporary, place)
    except (OSError, SafetensorError) as error:
        raise cannot_write(output, error, ANOTHER_FOLDER) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run_config(cli: DtrapCLI) -> str:
    options = ("adapter", "output", "form")
    content = {key: value for key, value in to_plain(cli).items() if key not in options}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


# The plain form


def _save_class_features(module: FewShotClassifier, path: Path) -> None:
    with torch.no_grad():
        features = normalise(module.text_features()).float().cpu().contiguous()
    metadata = {
        "class_names": json.dumps(list(module.class_prompts.class_names), ensure_ascii=False),
        "logit_scale": repr(float(module.objective.logit_scale)),
    }
    save_file({"class_features": features}, path, metadata=metadata)


def _with_trained_weights(module: FewShotClassifier) -> Backbone:
    """The backbone with the values that the tuner keeps under the names of the backbone's own parameters."""
    parameters = dict(module.backbone.named_parameters())
    with torch.no_grad():
        for name, value in module.tuner.adapter_state().items():
            if name in parameters:
                parameters[name].copy_(value)
    return module.backbone


class StoredClasses(Tuner):
    """Nothing is trained: class text features as an exported folder has them.

    Args:
        class_features: [W, D], normalised.
    """

    name = "exported"
    class_features: Tensor

    def __init__(self, class_features: Tensor) -> None:
        super().__init__()
        self.register_buffer("class_features", class_features)

    @property
    def trains(self) -> frozenset[Tower]:
        """The text tower, in whose place the stored features stand."""
        return frozenset({"text"})

    def attach(self, backbone: Backbone) -> None:
        """Nothing to attach."""

    def reset(self, seed: int, num_classes: int) -> None:
        """Nothing to start."""

    def adapter_state(self) -> dict[str, Tensor]:
        """Nothing to save."""
        return {}

    def text_features(self, backbone: Backbone, prompts: ClassPrompts, chunk: int | None = None) -> Tensor:
        """The stored class features [W, D]."""
        return self.class_features


def load_exported(folder: Path, card: AdapterCard) -> FewShotClassifier:
    """The model of an exported plain folder; no config is needed.

    Raises:
        DtrapError: Files are missing, damaged, or do not belong to the card.
    """
    path = folder / CLASS_FEATURES
    try:
        with safe_open(path, "pt") as file:
            features, metadata = file.get_tensor("class_features"), file.metadata()
        names, scale = json.loads(metadata["class_names"]), float(metadata["logit_scale"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DtrapError(
            f"{path}: not the class features that `dtrap export` writes ({error}). Export anew."
        ) from error
    if names != card.class_names:
        raise DtrapError(
            f"{path}: its classes {', '.join(names)} are not those of {EXPORT_CARD}, {', '.join(card.class_names)}. "
            "Keep the files of one export together."
        )
    module = FewShotClassifier(load_plain(folder), StoredClasses(features), Objective(logit_scale=scale))
    module.template, module.descriptions = card.template, card.prompts
    module.set_classes(card.class_names)
    return module


# The form of peft


def _save_peft(module: FewShotClassifier, folder: Path) -> None:
    """adapter_config.json and adapter_model.safetensors, by the names in the library's model."""
    backbone: Any = module.backbone
    layers = {name: layer for name, layer in backbone.model.named_modules() if isinstance(layer, LoraLayer)}
    if not layers:
        raise DtrapError(
            f"the tuner {module.tuner.name} changes the weights themselves, with no low-rank matrices that peft could "
            "load. Use --form plain."
        )
    (config,) = backbone.peft_config.values()
    config = copy.copy(config)
    # An expression: names in a list would match endings too, CLIP's "transformer..." also "visual.transformer...".
    config.target_modules = "|".join(re.escape(name) for name in layers)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    state = {
        f"{PEFT_PREFIX}{name}.{matrix}.weight": getattr(layer, matrix)[adapter].weight.detach().cpu().contiguous()
        for name, layer in layers.items()
        for adapter in layer.active_adapters
        for matrix in ("lora_A", "lora_B")
    }
    save_file(state, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
