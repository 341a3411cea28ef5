"""Saved adapters: a safetensors file with the trained values and a JSON card that says what they belong to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from .. import __version__
from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from .results import write_atomically

CARD_FORMAT = "dtrap-adapter/1"


def _versions() -> dict[str, str]:
    names = ("torch", "lightning", "open_clip_torch", "peft", "transformers")
    return {"dtrap": __version__, **{name: version(name) for name in names}}


@dataclass
class AdapterCard:
    """What an adapter belongs to; the JSON file beside it.

    Attributes:
        backbone: Identifier of the backbone, weights included.
        tuner: Name of the tuner.
        class_names: Classes in the order of the logits.
        template: The template or templates of the class prompts.
        dataset: Description of the data, such as "ISIC 5-way 5-shot".
        seed: Seed of the episodes.
        episode: Number of the episode.
        method: Name of the method in the run's rows.
        accuracy: Accuracy on the episode's queries in percent, None without queries.
        versions: Versions of dtrap and the libraries that made it.
        format: Format of this card.
    """

    backbone: str
    tuner: str
    class_names: list[str]
    template: str | list[str]
    dataset: str
    seed: int
    episode: int
    method: str
    accuracy: float | None = None
    versions: dict[str, str] = field(default_factory=_versions)
    format: str = CARD_FORMAT


def card_path(adapter: Path) -> Path:
    """The card of an adapter file: same name, ending .json."""
    return adapter.with_suffix(".json")


def save_adapter(path: Path, module: FewShotClassifier, card: AdapterCard) -> None:
    """Write the adapter and its card; the adapter is whole or absent.

    Raises:
        DtrapError: The files cannot be written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in module.tuner.adapter_state().items()}
    write_atomically(card_path(path), (json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n").encode())
    write_atomically(path, save(state, metadata={"format": CARD_FORMAT}))


def read_card(path: Path) -> AdapterCard:
    """The card of an adapter.

    Raises:
        DtrapError: The adapter or its card is not there or is no card of this format.
    """
    if not path.is_file() or path.suffix == ".json":
        raise DtrapError(f"{path}: no such adapter. Expected a .safetensors file that `dtrap fit` saved.")
    card = card_path(path)
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        if content.get("format") != CARD_FORMAT:
            raise ValueError(f"format is {content.get('format')!r}")
        return AdapterCard(**content)
    except FileNotFoundError:
        raise DtrapError(f"{card}: the adapter's card is missing; keep the two files side by side.") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DtrapError(f"{card}: not an adapter card ({error}). Expected the format {CARD_FORMAT}.") from error


def load_adapter(path: Path, module: FewShotClassifier, card: AdapterCard) -> None:
    """Put a saved adapter into a module of the same backbone and tuner.

    A module without classes gets those of the card, and its template; one that has classes must have the card's.

    Raises:
        DtrapError: The backbone, the tuner or the classes are others, or the file does not fit.
    """
    backbone, tuner = module.backbone.identifier, module.tuner.name
    if card.backbone != backbone:
        raise DtrapError(
            f"{path}: trained on the backbone {card.backbone}, but the config has {backbone}. An adapter fits only the "
            "weights that it was trained on: use the run's own config.yaml."
        )
    if card.tuner != tuner:
        raise DtrapError(
            f"{path}: trained with the tuner {card.tuner}, but the config has {tuner}. Use the run's config."
        )
    if module.prompts is None:
        module.template = card.template
        module.set_classes(card.class_names)
    elif list(module.prompts.class_names) != card.class_names:
        raise DtrapError(
            f"{path}: trained for the classes {', '.join(card.class_names)}, but here they are "
            f"{', '.join(module.prompts.class_names)}. Use the data, the seed and the episode that it was trained on."
        )
    module.tuner.reset(0, len(card.class_names))
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DtrapError(f"{path}: not a readable safetensors file ({error}).") from error
    try:
        module.tuner.load_adapter_state(state)
    except DtrapError as error:
        raise DtrapError(f"{path}: {error}") from error
