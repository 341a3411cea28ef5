"""The safetensors files of adapters: finite values, a checksum of them, and the card in the file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import DtrapError, first_line
from ..files import open_file
from ..lightning_modules.backbones.checkpoint import digest
from ..lightning_modules.finite import check_finite
from ..parsing import parse_json

CARD, CHECKSUM = "dtrap_card", "dtrap_sha256"
# No trained value comes near it; larger ones overflow in the first product and give scores without meaning.
LARGEST_VALUE = 1e10


def pack(tensors: Mapping[str, Tensor], card: str, metadata: Mapping[str, str], source: str) -> bytes:
    """Return the content of a safetensors file with its card and the checksum of its tensors.

    Raises:
        DtrapError: A value is not finite or too large; `source` names where the tensors come from.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    check_values(tensors, source, "The training diverged; lower --model.learning_rate.")
    return save(dict(tensors), metadata={**metadata, CARD: card, CHECKSUM: digest(tensors)})


def embedded_card(file: Path) -> list[Any]:
    """Return the decoded card in a file's metadata in a list, which is empty without a file or a card.

    Raises:
        DtrapError: The file is not readable as safetensors.
        ValueError: The card is not JSON.
    """
    if not file.is_file():
        return []
    card = _open(file, lambda content: (content.metadata() or {}).get(CARD))
    return [] if card is None else [parse_json(card)]


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and metadata of a file.

    Raises:
        DtrapError: The file is not readable as safetensors, a value is not finite or too large, or the values are not
            those that were saved.
    """
    tensors, metadata = _open(file, _everything)
    check_values(tensors, str(file), "Save the adapter again from a training that did not diverge.")
    # Files of before have neither a card nor a checksum.
    if metadata.get(CHECKSUM, "" if CARD in metadata else digest(tensors)) != digest(tensors):
        raise DtrapError(f"{file}: its values are not those that were saved with its card. Copy it again.")
    return tensors, metadata


def check_values(tensors: Mapping[str, Tensor], source: str, remedy: str) -> None:
    """Raise a DtrapError if a tensor has a value that is NaN, infinite or larger than any that is trained."""
    check_finite(tensors, source, remedy)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and float(tensor.abs().max()) > LARGEST_VALUE:
            raise DtrapError(f"{source}: '{name}' has values up to {float(tensor.abs().max()):.0e}. {remedy}")


def _everything(content: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    return {name: content.get_tensor(name) for name in list(content.keys())}, content.metadata() or {}


def _open(file: Path, read: Any) -> Any:
    try:
        with open_file(file), safe_open(file, "pt") as content:  # safetensors calls every reason "No such file"
            return read(content)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise DtrapError(
            f"{file}: not a readable safetensors file ({first_line(error)}). Copy it again, or save "
            "or export the adapter again."
        ) from error
