"""Load weights from local files without unrestricted unpickling."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import get_ident
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ... import parsing
from ...errors import DtrapError
from ..finite import check_finite

OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")

Model = TypeVar("Model", bound=nn.Module)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def read_json(path: Path, remedy: str = "Copy or download it again.") -> dict[str, Any]:
    """Read a JSON file with names and values; `remedy` ends the error message.

    Raises:
        DtrapError: The file is not valid JSON, or not a mapping.
    """
    try:
        content = parsing.read_json(path)
    except (OSError, ValueError) as error:
        raise DtrapError(f"{path}: not a JSON file ({error}). {remedy}") from error
    if not isinstance(content, dict):
        raise DtrapError(f"{path}: contains a {type(content).__name__}; expected names with values. {remedy}")
    return content


def read_weights(path: Path, *, trust_torchscript: bool = False) -> dict[str, Tensor]:
    """Read the tensors by name of a safetensors file, a torch file (weights only) or a known TorchScript archive.

    Args:
        path: The file; a name that ends with `.safetensors` has this format, every other file is a torch file.
        trust_torchscript: Also read a TorchScript archive, OpenAI's format of CLIP. Such a file is a program: use this
            for files with a known checksum only.

    Raises:
        DtrapError: The file is damaged, contains something other than tensors, or could run code when it is read.
    """
    # open_clip's own reader is not used: after a TypeError it reads the file again without `weights_only`.
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
            f"{path}: refused, since it cannot be read as plain tensors ({type(error).__name__}): it is damaged, or it "
            "contains Python objects or a program. Use a .safetensors file, or a torch file that "
            "torch.load(weights_only=True) accepts, as torch.save(model.state_dict(), file) writes it."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DtrapError(f"{path}: contains a {type(content).__name__}; expected tensors by parameter name.")
    return {name.removeprefix("module."): value for name, value in content.items() if name not in OPENAI_EXTRAS}


def without_weights(build: Callable[[], Model]) -> Model:
    """Return a model whose parameters are on the meta device, without values, until `load_weights` gives them theirs.

    Random weights that a file replaces take seconds to draw. Buffers are real, because checkpoints lack some of them,
    such as attention masks. A model whose constructor needs the values, or that has a parameter in two places, is built
    with random ones.

    Args:
        build: Returns the model; called again where it cannot be built so.
    """
    thread = get_ident()  # the hook is called for modules of all threads

    def drop_values(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if get_ident() != thread or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(drop_values)  # type: ignore[arg-type]
    try:
        model = build()
        places = sum(1 for _ in model.named_parameters(remove_duplicate=False))
        if places == sum(1 for _ in model.parameters()):
            return model
    except (RuntimeError, DtrapError):  # torch's errors where a value is asked for, perhaps explained by `build`
        pass
    finally:
        hook.remove()
    return build()


def load_weights(model: nn.Module, weights: dict[str, Tensor], *, path: Path, target: str, remedy: str) -> None:
    """Load weights; every parameter must be present.

    Args:
        model: The model.
        weights: Tensors by name.
        path: The file of the weights, for the error.
        target: What the weights have to fit, for the error: "the model 'ViT-B-16'".
        remedy: What to do if they do not, for the error.

    Raises:
        DtrapError: Parameters are missing, unknown, of another shape or not finite; the message names some.
    """
    state = model.state_dict()
    expected = {name: list(value.shape) for name, value in state.items()}
    given = {name: list(value.shape) for name, value in weights.items()}
    reshaped = [name for name, shape in expected.items() if given.get(name, shape) != shape]
    faults = {
        "missing": [name for name in expected if name not in given],
        "unknown": [name for name in given if name not in expected],
        "of another shape": [f"{name} {given[name]} instead of {expected[name]}" for name in reshaped],
    }
    found = [f"{len(names)} {fault} ({', '.join(names[:2])})" for fault, names in faults.items() if names]
    if found:
        raise DtrapError(f"{path}: these weights do not fit {target}: parameters {'; '.join(found)}. {remedy}")
    without = any(parameter.is_meta for parameter in model.parameters())
    if without:
        # Copies in the model's own types: a safetensors file is mapped into memory, and may be replaced later.
        form = torch.contiguous_format
        weights = {name: v.to("cpu", state[name].dtype, copy=True, memory_format=form) for name, v in weights.items()}
    model.load_state_dict(weights, assign=without)
    # After the load, which may turn a large float64 into an infinite float32.
    check_finite(model.state_dict(), str(path), "Copy or download the file again, or use other weights.")


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("constants.pkl") for entry in archive.namelist())
