"""`dtrap export`: write a tuned model for other programs."""

from __future__ import annotations

from pathlib import Path

import yaml
from rich.console import Console
from safetensors import SafetensorError

from ..console import say
from ..errors import DtrapError
from ..files import replacing
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.backbones.export import save_plain
from ..lightning_modules.tuners import Tuner
from ..protocol.adapters import (
    CLASS_FEATURES,
    CONFIG,
    EXPORT_CARD,
    AdapterCard,
    card_content,
    is_standalone,
    load_adapter,
)
from ..protocol.configuration import build_part
from ..protocol.export import save_class_features, save_peft, with_trained_weights
from ..protocol.onnx_graph import check_packages, save_onnx
from ..protocol.preprocessing import read_preprocessing
from .adapter_arguments import SavedAdapter, find_adapters
from .found import card_precision
from .hub_upload import Hub, without_local_paths
from .model_card import MODEL_CARD, row_of_run, save_model_card
from .parser import to_values

ANOTHER_FOLDER = "or name another folder with --output."


def export(arguments: list[str], console: Console) -> int:
    """Write a saved adapter as a folder for other programs; see `dtrap export --help`.

    Raises:
        DtrapError: The config or the adapter is not as expected, the tuner cannot be exported in this form, or the
            folder cannot be written or uploaded.
    """
    (adapter,) = find_adapters(arguments, "export", console)
    path, config, output = adapter.path, adapter.config, Path(adapter.config.output)
    if is_standalone(path) and config.form != "onnx":
        raise DtrapError(f"--adapter {path} is an exported standalone checkpoint already. Copy the folder instead.")
    _check_output(output, path)
    if config.form == "onnx":
        check_packages()
    elif not is_standalone(path):
        _check_tuner(build_part(Tuner, config.model.tuner))
    hub = None if config.push is None else Hub(config.push, private=config.private)
    module = adapter.build()
    if not is_standalone(path):
        load_adapter(path, module, adapter.card)
    card = adapter.card if adapter.card.model else adapter.card.with_model(module)
    if hub is not None:
        card = without_local_paths(card)
    with replacing(output.resolve(), ANOTHER_FOLDER, (OSError, SafetensorError)) as folder:
        folder.mkdir()
        said = _write(adapter, module, folder, card)
        save_model_card(folder, config.form, card, row_of_run(path, card), module.backbone)
        if hub is None:
            (folder / CONFIG).write_text(_run_config(adapter), encoding="utf-8")
        for file in folder.iterdir():  # safetensors writes files that only their owner can read
            file.chmod((folder / MODEL_CARD).stat().st_mode)
    say(console, f"{card.tuner} on {card.backbone}, {len(card.class_names)} classes: {output}")
    if said:
        say(console, said)
    if hub is not None:
        say(console, f"Uploaded: {hub.upload(output)}")
    return 0


def _write(adapter: SavedAdapter, module: FewShotClassifier, folder: Path, card: AdapterCard) -> str | None:
    """Write the files of a form; return what there is to say about them."""
    images = read_preprocessing(card.preprocessing, module.backbone, adapter.path)
    if adapter.config.form == "onnx":
        difference = save_onnx(module, folder, card, images)
        return f"Checked with onnxruntime: probabilities within {max(difference, 1e-9):.0e} of torch's."
    if adapter.config.form == "peft":
        card = save_peft(module, folder, card)
    else:
        save_class_features(module, folder / CLASS_FEATURES, card)
        settings = adapter.config.model.backbone.get("init_args") or {}
        resizing = images.resize_mode, images.interpolation
        save_plain(with_trained_weights(module), folder, settings.get("name"), *resizing)
    (folder / EXPORT_CARD).write_bytes(card_content(card).encode())
    return None


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
            f"the tuner {tuner.name} cannot be exported in this form: its prompts or modules are not weights of the "
            "backbone, and a checkpoint of open_clip, transformers or peft has no place for them. Use --form onnx, or "
            "keep the adapter file; `dtrap predict` reads it."
        )


def _run_config(adapter: SavedAdapter) -> str:
    options = ("adapter", "output", "form", "push", "private")
    content = {key: value for key, value in to_values(adapter.cli).items() if key not in options}
    if content["trainer"].get("precision") is None:
        content["trainer"]["precision"] = card_precision(adapter.card)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
