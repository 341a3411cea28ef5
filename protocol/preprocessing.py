"""How images became square in a run: held in its config, its adapters' cards, and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ..datamodules.few_shot import FewShotDataModule
from ..datamodules.views import Preprocessing
from ..errors import DtrapError
from ..files import to_json_values
from .identity import VALUES_BEFORE

OPTION = "test_preprocessing"


class HasValues(Protocol):
    """A method of a run with its settings as values of JSON."""

    values: dict[str, Any]


def settle_test_preprocessing(
    data: FewShotDataModule, methods: Sequence[HasValues], stored: Mapping[str, Any] | None
) -> None:
    """Write what `test_preprocessing` null stands for into the data module and the settings of the methods.

    A run folder from before the option existed goes on with what the code did then.

    Args:
        data: The data module.
        methods: The methods of the run.
        stored: The main method's identity in a folder that is resumed; None for a new run.
    """
    known = (stored or {}).get("data", {}).get("init_args", {})
    options = [method.values["data"].get("init_args", {}) for method in methods]
    # A data module whose constructor does not offer the option could not say in its config what it was.
    offered = all(OPTION in given for given in options)
    if data.test_preprocessing is None and (not offered or (stored is not None and OPTION not in known)):
        data.test_preprocessing = VALUES_BEFORE[f"data.init_args.{OPTION}"]
    data.test_preprocessing = data.test_preprocessing or data.default_test_preprocessing
    for given in options if offered else ():
        given[OPTION] = data.test_preprocessing


def card_preprocessing(data: FewShotDataModule) -> dict[str, Any]:
    """Return size, normalization, resizing and value range of a run's images for an adapter's card."""
    chosen = data.test_preprocessing or data.default_test_preprocessing
    return describe_preprocessing(data.preprocessing) | {
        OPTION: chosen,
        "value_range": to_json_values(data.value_range),
    }


def describe_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return how an image becomes the input of a backbone, as values of JSON."""
    content = asdict(preprocessing)
    del content["evaluation"]
    return to_json_values(content)  # type: ignore[no-any-return]


def preprocessing_of(backbone: object) -> Preprocessing:
    """Return the preprocessing of a backbone, CLIP's if it does not state its own."""
    return Preprocessing.of(backbone) or Preprocessing()


def read_preprocessing(stored: Mapping[str, Any] | None, backbone: object, path: Path) -> Preprocessing:
    """Return the preprocessing that an adapter was trained with.

    Args:
        stored: What `card_preprocessing` returned; None in old cards, when images were squashed.
        backbone: The adapter's backbone.
        path: The adapter, for messages.

    Raises:
        DtrapError: The content is not that of a card.
    """
    own = preprocessing_of(backbone)
    if stored is None:
        return own
    try:
        mean, std = (tuple(map(float, stored[name])) for name in ("mean", "std"))
        return Preprocessing(
            int(stored["image_size"]),
            mean,  # type: ignore[arg-type]
            std,  # type: ignore[arg-type]
            stored["resize_mode"],
            stored["interpolation"],
            own.evaluation,
        )
    except (KeyError, TypeError, ValueError, DtrapError) as error:
        raise DtrapError(f"{path}: the card's preprocessing is not as dtrap writes it ({error}).") from error


def use_card_preprocessing(data: FewShotDataModule, stored: Mapping[str, Any] | None, path: Path) -> None:
    """Let a data module read images as in the training of an adapter.

    Raises:
        DtrapError: The data module was given other settings.
    """
    known = stored or {}
    former = VALUES_BEFORE[f"data.init_args.{OPTION}"]
    trained = {OPTION: known.get(OPTION, former), "value_range": known.get("value_range")}
    for option, value in trained.items():
        here = getattr(data, option)
        if here not in (None, value):
            raise DtrapError(
                f"{path}: trained with {option} {value}, but here it is {here}. Leave out --data.{option}, which is "
                "read from the adapter."
            )
        setattr(data, option, value)
