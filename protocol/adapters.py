"""Saved adapters: a safetensors file with the trained values and a card that says how the model is made again.

The card is in the file's metadata; the JSON file next to it is a readable copy. Folders that `dtrap export` wrote are
read here, too: an adapter in peft's form, or a standalone checkpoint of the whole model. Their card is dtrap.json.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import __version__
from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError, first_line
from ..files import printable, to_json_values, write_atomically
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.backbones.local_files import describe_backbone, is_same
from ..lightning_modules.parts import describe
from ..lightning_modules.text_head import prompt_texts
from ..parsing import read_json
from .adapter_file import LARGEST_VALUE, embedded_card, pack, read_tensors
from .paths import with_absolute_paths
from .preprocessing import card_preprocessing, describe_preprocessing, preprocessing_of
from .run_folder import RESUMES, Row
from .temperature import LEAST_TEMPERATURE, MOST_TEMPERATURE

CARD_FORMAT = "dtrap-adapter/2"
CARD_FORMATS = ("dtrap-adapter/1", CARD_FORMAT)
EXPORT_CARD = "dtrap.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
PEFT_SHARED = "base_model."  # of matrices that all layers share
CLASS_FEATURES = "class_features.safetensors"
CONFIG = "config.yaml"
LONGEST_NAME = 1_000


def _versions() -> dict[str, str]:
    names = ("torch", "lightning", "open_clip_torch", "peft", "transformers")
    return {"dtrap": __version__, **{name: version(name) for name in names}}


@dataclass
class AdapterCard:
    """What makes the model of an adapter again, and the episode that it was trained on.

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
        settings: The arguments of the tuner that are kept as attributes; empty in old cards.
        logit_scale: tau; None in old cards.
        versions: Versions of dtrap and of the libraries that the adapter was trained with.
        format: Format of this card.
        model: `backbone` and `tuner` by class and arguments, and the model's own `template`; empty in old cards.
        files: `path` and `sha256` of each file or folder that an argument of the backbone names.
        preprocessing: Size, normalization, resizing and value range of the images; None in old cards, when images were
            squashed.
        data: The data module by class and arguments; None if it is not known.
        methods: The methods of the run in its order.
        precision: The Trainer's precision.
        temperature: What the scores are divided by before their softmax, fitted on held-out images of the run; None
            where there were none.
        calibration: What the temperature rests on: `images`, and `cross_entropy_before`, `cross_entropy_after`,
            `calibration_error_before` and `calibration_error_after` of these images; None without a temperature.
        rejection: Thresholds that reject images of none of the classes, see `protocol.rejection`; None in old cards.
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
    model: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    preprocessing: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    methods: list[str] = field(default_factory=list)
    precision: str | None = None
    temperature: float | None = None
    calibration: dict[str, float] | None = None
    rejection: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        module: FewShotClassifier,
        data: FewShotDataModule,
        row: Row,
        methods: Sequence[str] = (),
        precision: Any = None,
    ) -> AdapterCard:
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
            data=with_absolute_paths({"data": describe(data, data.given_arguments)})["data"],
            methods=list(methods),
            precision=None if precision is None else str(precision),
        )

    def with_model(self, module: FewShotClassifier) -> AdapterCard:
        """Return the card with what makes this module again."""
        backbone, files = describe_backbone(module.backbone)
        model = {"backbone": backbone, "tuner": describe(module.tuner), "template": to_json_values(module.template)}
        return replace(
            self,
            format=CARD_FORMAT,
            prompts=None if module.descriptions is None else module.class_prompts.by_class,
            settings=to_json_values(module.tuner.settings),
            logit_scale=float(module.objective.logit_scale),
            model=model,
            files=files,
            preprocessing=self.preprocessing or describe_preprocessing(preprocessing_of(module.backbone)),
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


def card_content(card: AdapterCard) -> str:
    """Return the card as the content of its file."""
    # A file name that is not UTF-8 becomes escapes of JSON.
    return printable(json.dumps(asdict(card), indent=2, ensure_ascii=False)) + "\n"


def save_adapter(path: Path, module: FewShotClassifier, card: AdapterCard) -> None:
    """Write the adapter atomically, and its card with what makes the module again.

    Raises:
        DtrapError: The values are not finite, or the files cannot be written.
    """
    content = card_content(card.with_model(module))
    tensors = pack(module.tuner.adapter_state(), content, {"format": CARD_FORMAT}, str(path))
    write_atomically(card_path(path), content, RESUMES)
    write_atomically(path, tensors, RESUMES)


def weights_file(path: Path) -> Path:
    """Return the safetensors file that holds the card of an adapter or an exported folder."""
    if not path.is_dir():
        return path
    return path / (CLASS_FEATURES if is_standalone(path) else PEFT_WEIGHTS)


def read_card(path: Path) -> AdapterCard:
    """Read the card of an adapter file, or of a folder that `dtrap export` wrote.

    Raises:
        DtrapError: The adapter or its card is missing, the card has another format, or its copy differs.
    """
    if path.suffix == ".json" or not (path.is_file() or is_exported(path)):
        raise DtrapError(
            f"{path}: no such adapter. Expected a .safetensors file that `dtrap fit` saved, or a folder that `dtrap "
            "export` wrote."
        )
    file = copy = card_path(path)
    try:
        beside = [read_json(copy)] if copy.exists() else []
        file = weights_file(path)
        inside = embedded_card(file)
        if inside and beside and beside != inside:
            raise DtrapError(f"{copy}: differs from the card inside {file}. Delete it: it is only a readable copy.")
        if not inside and not beside:
            raise DtrapError(f"{copy}: the adapter's card is missing. Keep both files in the same folder.")
        file = file if inside else copy
        return _decoded(*(inside or beside))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        expected = f"Expected the format {' or '.join(CARD_FORMATS)}."
        raise DtrapError(f"{file}: not an adapter card ({first_line(error)}). {expected}") from error


def _decoded(content: Any) -> AdapterCard:
    """Return the card of a decoded JSON value; raise a ValueError or TypeError for anything else."""
    if not isinstance(content, dict) or content.get("format") not in CARD_FORMATS:
        raise ValueError(f"format is {str(content.get('format') if isinstance(content, dict) else None)[:60]!r}")
    hints = typing.get_type_hints(AdapterCard)
    for name, value in content.items():
        if name in hints and not _fits(value, hints[name]):
            raise TypeError(f"{name} is {repr(value)[:60]}")
    card = AdapterCard(**content)
    if not card.class_names or max(map(len, card.class_names)) > LONGEST_NAME:
        raise ValueError(f"class_names is empty, or has a name of more than {LONGEST_NAME} characters")
    if not card.method.strip() or "/" in card.method:
        raise ValueError(f"method is {card.method[:60]!r}")
    if card.accuracy is not None and not 0 <= card.accuracy <= 100:
        raise ValueError(f"accuracy is {card.accuracy:g} %")
    if card.logit_scale is not None and not 0 < card.logit_scale <= LARGEST_VALUE:
        raise ValueError(f"logit_scale is {card.logit_scale}")
    if card.temperature is not None and not LEAST_TEMPERATURE <= card.temperature <= MOST_TEMPERATURE:
        raise ValueError(f"temperature is {card.temperature}")
    return card


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value of JSON has the type of a field of the card."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is types.UnionType:
        return any(_fits(value, member) for member in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) < float("inf")  # no NaN either
    return isinstance(value, hint)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read the tuner's values, by the tuner's names, from an adapter file or a folder in peft's form.

    Raises:
        DtrapError: The file is not readable as safetensors, or holds values that are not finite.
    """
    state, _ = read_tensors(weights_file(path))
    if not path.is_dir():
        return state
    return {_in_backbone(name.removesuffix(".weight")): value for name, value in state.items()}


def _in_backbone(name: str) -> str:
    """Return the tuner's name of a value in peft's file."""
    if name.startswith(PEFT_PREFIX):
        return f"model.{name.removeprefix(PEFT_PREFIX)}"
    return name.removeprefix(PEFT_SHARED)


def load_adapter(path: Path, module: FewShotClassifier, card: AdapterCard) -> None:
    """Load a saved adapter into a module of the same backbone and tuner.

    A module without classes gets the classes, template or sentences of the card.

    Raises:
        DtrapError: The backbone, the tuner, its settings, the classes, their prompts or the logit scale differ from the
            card, or the file does not fit.
    """
    _check_backbone(path, module, card)
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


def _check_backbone(path: Path, module: FewShotClassifier, card: AdapterCard) -> None:
    """Raise a DtrapError for other weights or another preprocessing; a local file may have got another name."""
    remedy = "An adapter fits only the weights that it was trained on. Use the run's config.yaml and the same weights."
    if not is_same(module.backbone, card.backbone, card.files):
        _check_same(path, "on the backbone", card.backbone, module.backbone.identifier, remedy)
    own = describe_preprocessing(preprocessing_of(module.backbone))
    stored = card.preprocessing or {}
    for name in ("image_size", "mean", "std"):
        _check_same(path, f"with preprocessing.{name}", stored.get(name, own[name]), own[name])


def _check_settings(path: Path, module: FewShotClassifier, card: AdapterCard) -> None:
    """Raise a DtrapError for settings that would give other predictions without any other error."""
    known, own = dict(card.settings), to_json_values(module.tuner.settings)
    if card.logit_scale is not None:
        known["logit scale"], own["logit scale"] = card.logit_scale, float(module.objective.logit_scale)
    if not module.tuner.own_prompts:
        known["class prompts"] = prompt_texts(card.class_names, card.template, card.prompts)
        own["class prompts"] = module.class_prompts.by_class
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
