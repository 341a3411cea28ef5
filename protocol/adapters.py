"""Saved adapters: a safetensors file with the trained values and a JSON card that says what they belong to.

What `dtrap export` writes is read here too: a folder in peft's form, or a plain checkpoint; its card is dtrap.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .. import __version__
from ..errors import DtrapError
from ..files import to_json_values, write_atomically
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.text_head import prompt_texts
from .run_folder import RESUMES

CARD_FORMAT = "dtrap-adapter/1"
EXPORT_CARD = "dtrap.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
CONFIG = "config.yaml"


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
        prompts: The sentences of each class where they come from descriptions, else None.
        settings: The arguments of the tuner; empty where the card does not tell.
        logit_scale: tau; None where the card does not tell.
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
    prompts: dict[str, list[str]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    logit_scale: float | None = None
    versions: dict[str, str] = field(default_factory=_versions)
    format: str = CARD_FORMAT


def card_path(adapter: Path) -> Path:
    """The card of an adapter: dtrap.json of an exported folder; beside a file the same name, ending .json."""
    return adapter / EXPORT_CARD if adapter.is_dir() else adapter.with_suffix(".json")


def is_exported(path: Path) -> bool:
    """Whether this is a folder that `dtrap export` wrote."""
    return (path / EXPORT_CARD).is_file()


def is_plain(path: Path) -> bool:
    """Whether this is an exported folder with the backbone itself in it."""
    return is_exported(path) and not (path / PEFT_WEIGHTS).is_file()


def card_content(card: AdapterCard) -> bytes:
    """The card as it stands in its file."""
    return (json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n").encode()


def save_adapter(path: Path, module: FewShotClassifier, card: AdapterCard) -> None:
    """Write the adapter and its card, completed by what the module knows; it is whole or absent.

    Raises:
        DtrapError: The files cannot be written.
    """
    card = replace(
        card, settings=to_json_values(module.tuner.settings), logit_scale=float(module.objective.logit_scale)
    )
    if module.descriptions is not None:
        card = replace(card, prompts=class_sentences(module))
    state = {name: value.detach().cpu().contiguous() for name, value in module.tuner.adapter_state().items()}
    write_atomically(card_path(path), card_content(card), RESUMES)
    write_atomically(path, save(state, metadata={"format": CARD_FORMAT}), RESUMES)


def class_sentences(module: FewShotClassifier) -> dict[str, list[str]]:
    """The prompts of each class."""
    prompts = module.class_prompts
    texts = iter(prompts.prompts)
    counts = zip(prompts.class_names, prompts.per_class, strict=True)
    return {name: [next(texts) for _ in range(count)] for name, count in counts}


def read_card(path: Path) -> AdapterCard:
    """The card of an adapter: a file, or a folder that `dtrap export` wrote.

    Raises:
        DtrapError: The adapter or its card is not there or is no card of this format.
    """
    if path.suffix == ".json" or not (path.is_file() or is_exported(path)):
        raise DtrapError(
            f"{path}: no such adapter. Expected a .safetensors file that `dtrap fit` saved, or a folder that `dtrap "
            "export` wrote."
        )
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        DtrapError: It is none.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DtrapError(f"{path}: not a readable safetensors file ({error}).") from error


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tuner's values by its own names, of an adapter file or of a folder in peft's form."""
    if not path.is_dir():
        return read_tensors(path)
    state = read_tensors(path / PEFT_WEIGHTS)
    return {f"model.{name.removeprefix(PEFT_PREFIX).removesuffix('.weight')}": value for name, value in state.items()}


def load_adapter(path: Path, module: FewShotClassifier, card: AdapterCard) -> None:
    """Put a saved adapter into a module of the same backbone and tuner.

    A module without classes gets those of the card with its template or sentences; one that has classes must have the
    card's.

    Raises:
        DtrapError: The backbone, the tuner, its settings, the classes, their prompts or the logit scale are others, or
            the file does not fit.
    """
    backbone, tuner = module.backbone.identifier, module.tuner.name
    if card.backbone != backbone:
        raise DtrapError(
            f"{path}: trained on the backbone {card.backbone}, but the config has {backbone}. An adapter fits only the "
            "weights that it was trained on: use the run's own config.yaml, and where it is that, the same weights."
        )
    check_tuner(path, tuner, card)
    if module.prompts is None:
        module.template, module.descriptions = card.template, card.prompts
        module.set_classes(card.class_names)
    check_classes(path, module.class_prompts.class_names, card)
    _check_settings(path, module, card)
    module.tuner.reset(0, len(card.class_names))
    state = _read_state(path)
    try:
        module.tuner.load_adapter_state(state)
    except DtrapError as error:
        raise DtrapError(f"{path}: {error}") from error


def _check_settings(path: Path, module: FewShotClassifier, card: AdapterCard) -> None:
    """Refuse what would silently make other predictions than those that were tested."""
    settings = to_json_values(module.tuner.settings)
    known, own = dict(card.settings), {name: settings.get(name) for name in card.settings}
    if card.logit_scale is not None:
        known["logit scale"], own["logit scale"] = card.logit_scale, float(module.objective.logit_scale)
    if not module.tuner.own_prompts:
        known["class prompts"] = prompt_texts(card.class_names, card.template, card.prompts)
        own["class prompts"] = class_sentences(module)
    for name, value in known.items():
        if own[name] != value:
            raise DtrapError(
                f"{path}: trained with {name} {str(value)[:200]}, but here it is {str(own[name])[:200]}. Use the "
                "config of the run."
            )


def check_tuner(path: Path, tuner: str, card: AdapterCard) -> None:
    """Refuse another tuner than the card's; raises a DtrapError."""
    if card.tuner != tuner:
        raise DtrapError(
            f"{path}: trained with the tuner {card.tuner}, but the config has {tuner}. Use the run's config."
        )


def check_classes(path: Path, names: Sequence[str], card: AdapterCard) -> None:
    """Refuse a task of other classes than the card's.

    Raises:
        DtrapError: They are others, or in another order.
    """
    if list(names) != card.class_names:
        raise DtrapError(
            f"{path}: trained for the classes {', '.join(card.class_names)}, but here they are {', '.join(names)}. "
            "Use the data, the seed and the episode that it was trained on."
        )
