"""Weights from a local file into an open_clip model; nothing is ever unpickled freely."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import DtrapError

OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def read_weights(path: Path, *, trust_torchscript: bool = False) -> dict[str, Tensor]:
    """Tensors by name of a safetensors file, a torch file (weights only) or a known TorchScript archive.

    open_clip's own reader is not used: after a TypeError it reads again without `weights_only`.

    Args:
        path: The file; its ending `.safetensors` tells the format, everything else is a torch file.
        trust_torchscript: Read a TorchScript archive too, as OpenAI publishes CLIP. It is a program: only for
            files of known checksum.

    Raises:
        DtrapError: The file is damaged, holds other than tensors, or could run code when it is read.
    """
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif trust_torchscript and _is_torchscript(path):
            content = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise DtrapError(f"{path}: not a valid safetensors file ({error}). Copy or download it again.") from error
    except Exception as error:
        raise DtrapError(
            f"{path}: refused, since it cannot be read as plain tensors ({type(error).__name__}): it is "
            "damaged, or it holds Python objects or a program. Give a .safetensors file, or a torch file "
            "that torch.load(weights_only=True) accepts, such as torch.save(model.state_dict(), file) writes."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DtrapError(f"{path}: holds a {type(content).__name__}; expected tensors by parameter name.")
    return {name.removeprefix("module."): value for name, value in content.items() if name not in OPENAI_EXTRAS}


def load_weights(model: nn.Module, weights: dict[str, Tensor], *, path: Path, name: str) -> None:
    """Put the weights into an open_clip model, older layouts included; every parameter has to be there.

    Args:
        model: An open_clip model.
        weights: Tensors by name, as open_clip saves them.
        path: Where they come from, for the error.
        name: The model's name, for the error.

    Raises:
        DtrapError: Parameters are missing, unknown or of another shape; the message names some.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    weights = convert_state_dict(model, weights)
    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    expected = model.state_dict()
    if "logit_bias" in expected:
        weights = {"logit_bias": torch.zeros_like(expected["logit_bias"]), **weights}
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in weights and scalar in expected:
            weights[scalar] = weights[scalar].reshape(expected[scalar].shape)
    faults = {
        "missing": [key for key in expected if key not in weights],
        "unknown": [key for key in weights if key not in expected],
        "of another shape": [
            f"{key} {list(weights[key].shape)} instead of {list(expected[key].shape)}"
            for key in expected
            if key in weights and weights[key].shape != expected[key].shape
        ],
    }
    found = [f"{len(keys)} {fault} ({', '.join(keys[:2])})" for fault, keys in faults.items() if keys]
    if found:
        raise DtrapError(
            f"{path}: these weights do not fit the model '{name}': parameters {'; '.join(found)}. "
            "Give the open_clip name or JSON config that they were trained with."
        )
    model.load_state_dict(weights)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("constants.pkl") for entry in archive.namelist())
