"""Saved adapters: a safetensors file with the trained values and a JSON card that says what they belong to.

Folders that `dtrap export` wrote are read here, too: an adapter in peft's form, or a standalone checkpoint of the whole
model. Their card is dtrap.json.
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
from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError
from ..files import printable, to_json_values, write_atomically
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.text_head import prompt_texts
from .preprocessing import card_preprocessing
from .run_folder import RESUMES, Row

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
    """Backbone, tuner, classes and episode of an adapter; stored as a JSON file next to it.

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
        settings: The arguments of the tuner; empty in old cards.
        logit_scale: tau; None in old cards.
        preprocessing: Size, normalization, resizing and value range of the images; None in old cards, when images were
            squashed.
        versions: Versions of dtrap and of the libraries that the adapter was trained with.
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
    preprocessing: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=_versions)
    format: str = CARD_FORMAT

    @classmethod
    def of(cls, module: FewShotClassifier, data: FewShotDataModule, row: Row) -> AdapterCard:
        """Describe the module after the episode of a row."""
        return cls(
            backbone=module.backbone.identifier,
            tuner=module.tuner.name,
            class_names=row["classes"],
            template=to_json_values(module.template or data.template),
            dataset=data.description,
            seed=row["seed"],
            episode=row["episode"],
            method=row["method"],
            accuracy=row["accuracy"],
            preprocessing=card_preprocessing(data),
        )


def card_path(adapter: Path) -> Path:
    """Path of an adapter's card: dtrap.json in an exported folder, else the adapter's name with the ending .json."""
    return adapter / EXPORT_CARD if adapter.is_dir() else adapter.with_suffix(".json")


def is_exported(path: Path) -> bool:
    """Whether this is a folder that `dtrap export` wrote."""
    return (path / EXPORT_CARD).is_file()


def is_standalone(path: Path) -> bool:
    """Whether this is an exported folder that holds the whole model (`dtrap export --form plain`)."""
    return is_exported(path) and not (path / PEFT_WEIGHTS).is_file()


def card_content(card: AdapterCard) -> bytes:
    """Encode the card as the content of its file."""
    return (printable(json.dumps(asdict(card), indent=2, ensure_ascii=False)) + "\n").encode()


def save_adapter(path: Path, module: FewShotClassifier, card: AdapterCard) -> None:
    """Write the adapter atomically, and its card with the settings and prompts of the module.

    Raises:
        DtrapError: The files cannot be written.
    """
    prompts = None if module.descriptions is None else class_sentences(module)
    settings, scale = to_json_values(module.tuner.settings), float(module.objective.logit_scale)
    card = replace(card, prompts=prompts, settings=settings, logit_scale=scale)
    state = {name: value.detach().cpu().contiguous() for name, value in module.tuner.adapter_state().items()}
    write_atomically(card_path(path), card_content(card), RESUMES)
    write_atomically(path, save(state, metadata={"format": CARD_FORMAT}), RESUMES)


def class_sentences(module: FewShotClassifier) -> dict[str, list[str]]:
    """Return the prompts of each class."""
    prompts = module.class_prompts
    texts = iter(prompts.prompts)
    counts = zip(prompts.class_names, prompts.per_class, strict=True)
    return {name: [next(texts) for _ in range(count)] for name, count in counts}


def read_card(path: Path) -> AdapterCard:
    """Read the card of an adapter file, or of a folder that `dtrap export` wrote.

    Raises:
        DtrapError: The adapter or its card is missing, or the card has another format.
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
        raise DtrapError(f"{card}: the adapter's card is missing. Keep both files in the same folder.") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DtrapError(f"{card}: not an adapter card ({error}). Expected the format {CARD_FORMAT}.") from error


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read the tuner's values, by the tuner's names, from an adapter file or a folder in peft's form.

    Raises:
        DtrapError: The file is not readable as safetensors.
    """
    file = path / PEFT_WEIGHTS if path.is_dir() else path
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DtrapError(f"{file}: not a readable safetensors file ({error}).") from error
    if file == path:
        return state
    return {f"model.{name.removeprefix(PEFT_PREFIX).removesuffix('.weight')}": value for name, value in state.items()}


def load_adapter(path: Path, module: FewShotClassifier, card: AdapterCard) -> None:
    """Load a saved adapter into a module of the same backbone and tuner.

    A module without classes gets the classes, template or sentences of the card.

    Raises:
        DtrapError: The backbone, the tuner, its settings, the classes, their prompts or the logit scale differ from the
            card, or the file does not fit.
    """
    remedy = "An adapter fits only the weights that it was trained on. Use the run's config.yaml and the same weights."
    _check_same(path, "on the backbone", card.backbone, module.backbone.identifier, remedy)
    check_tuner(path, module.tuner.name, card)
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
    """Raise a DtrapError for settings that would give other predictions without any other error."""
    known, own = dict(card.settings), to_json_values(module.tuner.settings)
    if card.logit_scale is not None:
        known["logit scale"], own["logit scale"] = card.logit_scale, float(module.objective.logit_scale)
    if not module.tuner.own_prompts:
        known["class prompts"] = prompt_texts(card.class_names, card.template, card.prompts)
        own["class prompts"] = class_sentences(module)
    for name, value in known.items():
        _check_same(path, f"with {name}", value, own.get(name))


def check_tuner(path: Path, tuner: str, card: AdapterCard) -> None:
    """Raise a DtrapError if the tuner differs from the card's."""
    _check_same(path, "with the tuner", card.tuner, tuner)


def _check_same(path: Path, what: str, trained: Any, here: Any, remedy: str = "Use the config of the run.") -> None:
    if trained != here:
        raise DtrapError(f"{path}: trained {what} {str(trained)[:200]}, but here it is {str(here)[:200]}. {remedy}")


def check_classes(path: Path, names: Sequence[str], card: AdapterCard) -> None:
    """Raise a DtrapError if the classes or their order differ from the card's."""
    if list(names) != card.class_names:
        raise DtrapError(
            f"{path}: trained for the classes {', '.join(card.class_names)}, but here they are {', '.join(names)}. "
            "Use the data, the seed and the episode that it was trained on."
        )
