"""Export a tuned backbone as an ordinary checkpoint of its library, open_clip or transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import DtrapError
from ..finite import check_finite
from .attention import SeparateAttention
from .base import Backbone
from .bert_tower import is_bert
from .hub import TOKENIZER_CONFIG
from .open_clip import OpenCLIP, find_architecture
from .peft_layers import merge_adapters
from .transformers import BILINEAR, Transformers

_QKV = ("q_proj", "k_proj", "v_proj")
_BICUBIC = 3


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model with peft's adapters merged, such as W + scale * B A; the model is not changed."""
    merged = copy.deepcopy(model)
    merge_adapters(merged)
    return merged.state_dict()


def plain_state(backbone: Backbone) -> dict[str, Tensor]:
    """Return the state with the library's names and with adapters merged; the backbone is not changed.

    For open_clip the separate query, key and value layers are fused again where the original layers were.
    """
    model: Any = backbone.model
    state = merged_state(model)
    if isinstance(backbone, OpenCLIP):
        for name, layer in model.named_modules():
            if isinstance(layer, SeparateAttention):
                _rename(state, name, layer)
                if layer.fused_as is not None:
                    _fuse(state, name, layer.fused_as)
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    check_finite(state, backbone.identifier, "Export an adapter whose training did not diverge.")
    return state


def _rename(state: dict[str, Tensor], name: str, layer: SeparateAttention) -> None:
    for ours, theirs in layer.replaced_names.items():
        for key in [key for key in state if key.startswith(f"{name}.{ours}.")]:
            state[f"{name}.{theirs}.{key.rpartition('.')[2]}"] = state.pop(key)


def _fuse(state: dict[str, Tensor], name: str, fused_as: str) -> None:
    """Fuse q_proj, k_proj and v_proj; if the keys have no bias, the others keep theirs separately (EVA)."""
    state[f"{name}.{fused_as}weight"] = torch.cat([state.pop(f"{name}.{part}.weight") for part in _QKV])
    biases = [state.pop(f"{name}.{part}.bias", None) for part in _QKV]
    given = [value for value in biases if value is not None]
    if len(given) == len(_QKV):
        state[f"{name}.{fused_as}bias"] = torch.cat(given)
    elif given:
        state[f"{name}.q_bias"], state[f"{name}.v_bias"] = given


def save_plain(
    backbone: Backbone,
    folder: Path,
    name: str | None = None,
    resize_mode: str = "squash",
    interpolation: str = "bilinear",
) -> None:
    """Write a folder that the backbone's library loads without dtrap, with tokenizer and image preprocessing.

    open_clip reads it as "local-dir:FOLDER", transformers with `from_pretrained`.

    Args:
        backbone: An `OpenCLIP` or a `Transformers`.
        folder: An existing folder for the files.
        name: The name or JSON config of an `OpenCLIP`; None means the one in its identifier.
        resize_mode: How images became square in the training's protocol, in open_clip's words: "squash" or "shortest".
        interpolation: "bilinear" or "bicubic".

    Raises:
        DtrapError: The backbone is neither, or the library cannot load the written files.
    """
    if isinstance(backbone, OpenCLIP):
        resizing = {"interpolation": interpolation, "resize_mode": resize_mode}
        _save_open_clip(backbone, folder, name or backbone.identifier.rpartition("/")[0], resizing)
    elif isinstance(backbone, Transformers):
        _save_transformers(backbone, folder, crop=resize_mode == "shortest", bilinear=interpolation == "bilinear")
    else:
        raise DtrapError(
            f"{type(backbone).__name__} is not a backbone from open_clip or transformers, so no library could load its "
            "checkpoint. Keep the adapter file and use `dtrap predict`."
        )


def load_plain(folder: Path) -> Backbone:
    """Load a backbone that `save_plain` wrote.

    Raises:
        DtrapError: The folder is not from either library, or cannot be read.
    """
    config, weights = folder / HF_CONFIG_NAME, folder / HF_SAFE_WEIGHTS_NAME
    if config.is_file():
        tokenizer = str(folder) if (folder / TOKENIZER_CONFIG).is_file() else None
        return OpenCLIP(str(config), str(weights), tokenizer=tokenizer)
    if (folder / "config.json").is_file():
        return Transformers(str(folder))
    raise DtrapError(
        f"{folder}: contains neither {HF_CONFIG_NAME} nor config.json. Expected a folder that `dtrap export` wrote."
    )


def _save_open_clip(backbone: OpenCLIP, folder: Path, name: str, resizing: dict[str, str]) -> None:
    config = copy.deepcopy(find_architecture(name).config)
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    tokenizer = backbone._tokenizer
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.tokenizer.save_pretrained(folder)
        if not config["text_cfg"].get("hf_tokenizer_name"):  # any name makes open_clip read the folder's tokenizer
            cleaning = {"clean": "lower", **(config["text_cfg"].get("tokenizer_kwargs") or {})}
            config["text_cfg"] |= {"hf_tokenizer_name": "tokenizer", "tokenizer_kwargs": cleaning}
    bert = is_bert(backbone._text_tower)
    if bert:  # the hub has its config, and the folder, for programs without network
        backbone._text_tower.config.save_pretrained(folder)
        config["text_cfg"]["hf_model_pretrained"] = False
    statistics = {"mean": list(backbone.image_mean), "std": list(backbone.image_std)}
    content = {"model_cfg": config, "preprocess_cfg": statistics | resizing}
    (folder / HF_CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(plain_state(backbone), folder / HF_SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    try:
        # open_clip itself would ask the hub for the config of a BERT tower.
        OpenCLIP(f"local-dir:{folder}") if bert else open_clip.create_model(f"local-dir:{folder}")
    except (RuntimeError, ValueError, KeyError) as error:
        raise DtrapError(
            f"{backbone.identifier}: open_clip {open_clip.__version__} cannot load the exported model "
            f"({' '.join(str(error).split())[:300]}). Keep the adapter file and use `dtrap predict`."
        ) from error


def _save_transformers(backbone: Transformers, folder: Path, *, crop: bool, bilinear: bool) -> None:
    import transformers

    backbone._tokenizer.save_pretrained(folder)
    kind = {"clip": transformers.CLIPImageProcessor, "siglip": transformers.SiglipImageProcessor}
    square = {"height": backbone.image_size, "width": backbone.image_size}
    size = {"shortest_edge": backbone.image_size} if crop else square
    options: dict[str, Any] = {"size": size, "resample": BILINEAR if bilinear else _BICUBIC, "do_convert_rgb": True}
    options |= {"do_center_crop": crop, "crop_size": square} if crop else {"do_center_crop": False}
    statistics = {"image_mean": list(backbone.image_mean), "image_std": list(backbone.image_std)}
    kind[backbone.model.config.model_type](**options, **statistics).save_pretrained(folder)
    transformers.utils.logging.disable_progress_bar()  # not useful for one file
    backbone.model.save_pretrained(folder, state_dict=plain_state(backbone))
