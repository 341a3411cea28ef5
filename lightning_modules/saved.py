"""What a Lightning checkpoint says about its module, and how the module is created again from it.

A checkpoint holds plain values and tensors only. Classes are looked up by name among those of dtrap; nothing that a
file names is imported.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .. import __version__
from ..errors import DtrapError, first_line
from ..keywords import plain
from .backbones.base import Backbone
from .backbones.checkpoint import digest
from .backbones.local_files import describe_backbone, is_same, missing_files
from .backbones.peft_layers import adapter_layers
from .finite import check_finite
from .objective import Objective
from .parts import ForeignClass, describe, own_class, rebuild
from .text_head import ClassPrompts
from .tuners.base import Tuner

if TYPE_CHECKING:
    from .few_shot_classifier import FewShotClassifier

SECTION = "dtrap"
FORMAT = "dtrap-checkpoint/1"
PARTS: dict[str, type] = {"backbone": Backbone, "tuner": Tuner, "objective": Objective}
# Arguments of the module that are saved as they are.
SETTINGS = (
    "template", "descriptions", "learning_rate", "final_rate", "image_chunk", "text_chunk", "plain_views", "start_seed",
)  # fmt: skip

Module = TypeVar("Module", bound="FewShotClassifier")


# Saving


def describe_module(module: FewShotClassifier) -> dict[str, Any]:
    """Describe a module by plain values: versions, backbone, tuner, objective, settings and class prompts."""
    backbone, files = describe_backbone(module.backbone)
    named = own_class(backbone["class_path"], Backbone) is type(module.backbone)
    return {
        "format": FORMAT,
        "version": __version__,
        "backbone": backbone,
        "identifier": module.backbone.identifier,
        "files": files,
        # What the identifier of random weights, or of a stranger's backbone, does not say.
        "weights": None if named and not _is_random(module.backbone.identifier) else _weights_hash(module.backbone),
        "tuner": describe(module.tuner),
        "objective": describe(module.objective),
        "settings": {name: plain(getattr(module, name)) for name in SETTINGS},
        "own_optimization": [
            name for name in ("optimizer", "lr_scheduler") if getattr(module, f"own_{name}", None) is not None
        ],
        "classes": None if module.prompts is None else module.prompts.by_class,
    }


def _is_random(identifier: str) -> bool:
    return identifier.endswith("/random")


def _weights_hash(backbone: Backbone) -> str:
    """Return type and SHA-256 of a backbone's own weights; computed once, since they are frozen."""
    known = getattr(backbone, "_weights_hash", None)
    if known is None:
        added = tuple(f"{name}." for name in adapter_layers(backbone))
        state = {name: value for name, value in backbone.state_dict().items() if isinstance(value, Tensor)}
        own = {
            name.replace(".base_layer.", "."): value
            for name, value in state.items()
            if not name.startswith(added) or ".base_layer." in name
        }
        kind = str(next(backbone.parameters()).dtype).removeprefix("torch.")
        known = backbone._weights_hash = f"{kind} {digest(own)}"  # type: ignore[assignment]
    return known


# Reading


def check_content(checkpoint: Any) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return a checkpoint's tensors and what it says about its module; None from an earlier version of dtrap.

    Raises:
        DtrapError: Either is of another form.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise DtrapError(
            "the checkpoint has no `state_dict` of tensors by name. Use a checkpoint that Lightning saved of a "
            "FewShotClassifier."
        )
    section = checkpoint.get(SECTION)
    if section is None:
        return state, None
    if not isinstance(section, dict) or section.get("format") != FORMAT:
        version = section.get("format") if isinstance(section, dict) else type(section).__name__
        raise DtrapError(
            f"the checkpoint's section '{SECTION}' has the format {str(version)[:80]!r}; expected {FORMAT!r}. Install "
            "the version of dtrap that wrote it."
        )
    parts = ("backbone", "files", "tuner", "objective", "settings")
    wrong = [name for name in parts if not isinstance(section.get(name), dict)]
    if wrong:
        raise _unreadable(f"'{wrong[0]}' is missing")
    if not all(isinstance(entry, dict) for entry in section["files"].values()):
        raise _unreadable("'files' has other values than path and sha256")
    return state, section


def adapter_names(module: FewShotClassifier) -> set[str]:
    """Return the state-dict names of the tensors that the tuner saves."""
    saved = {id(value) for value in module.tuner.adapter_state().values()}
    return {name for name, value in module.state_dict(keep_vars=True).items() if id(value) in saved}


def fitting_content(module: FewShotClassifier, checkpoint: Any) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return the content of a checkpoint of this module, and make room for its tensors.

    Raises:
        DtrapError: It is of another module, or a value is not finite.
    """
    saved, section = check_content(checkpoint)
    check_finite(saved, "the checkpoint", "The training has diverged before it was written; use an earlier one.")
    if section is not None:
        check_backbone(module.backbone, section)
    module.tuner.make_room({name.removeprefix("tuner."): value for name, value in saved.items()})
    odd = sorted(adapter_names(module) ^ saved.keys())
    if odd:
        raise DtrapError(
            f"the checkpoint does not fit the tuner {module.tuner.name}: {len(odd)} names differ, such as {odd[0]!r}. "
            "Load it with the backbone and the tuner settings that it was trained with."
        )
    if section is not None:
        check_fits(module, section)
    return saved, section


def check_fits(module: FewShotClassifier, section: dict[str, Any]) -> None:
    """Check that a module is the one that a checkpoint describes, where another would give other numbers.

    Raises:
        DtrapError: Backbone, tuner, its arguments, logit scale, classes or prompts differ.
    """
    try:
        own = describe_module(module)
        _check_same("with the tuner", section["tuner"]["class_path"], own["tuner"]["class_path"])
        for name, value in section["tuner"]["init_args"].items():
            _check_same(f"with {name}", value, own["tuner"]["init_args"].get(name))
        scale = section["objective"]["init_args"].get("logit_scale", module.objective.logit_scale)
        _check_same("with logit_scale", scale, module.objective.logit_scale)
        trained, here = section["classes"], own["classes"]
        if trained is not None and here is not None:
            _check_same("for the classes", list(trained), list(here))
            if not module.tuner.own_prompts:
                _check_same("with the class prompts", trained, here)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise _unreadable(f"{type(error).__name__}: {first_line(error)}") from error


def _check_same(what: str, trained: Any, here: Any) -> None:
    if trained != here:
        raise DtrapError(
            f"the checkpoint was trained {what} {str(trained)[:200]}, but here it is {str(here)[:200]}. Use the data "
            "and the settings that it was trained with."
        )


def check_backbone(backbone: Backbone, section: dict[str, Any]) -> None:
    """Raise a DtrapError unless a backbone has the weights that the checkpoint was trained on."""
    weights = section.get("weights")
    if weights is None:
        if not is_same(backbone, str(section.get("identifier")), section["files"]):
            _check_same("on the backbone", section.get("identifier"), backbone.identifier)
        return
    (kind, _, trained), (own_kind, _, here) = str(weights).partition(" "), _weights_hash(backbone).partition(" ")
    # Those of another precision cannot be compared.
    if kind == own_kind and trained != here:
        raise DtrapError(
            f"the checkpoint was trained on other weights of the backbone {backbone.identifier} (their SHA-256 "
            f"starts with {trained[:8]}, here it is {here[:8]}). Pass the same weights: "
            "load_from_checkpoint(path, backbone=...)."
        )


def _unreadable(reason: str) -> DtrapError:
    return DtrapError(
        f"the checkpoint's section '{SECTION}' is not readable ({reason[:200]}): it is damaged or was not written by "
        "dtrap. Use another checkpoint, or pass backbone, tuner and objective."
    )


# Creating the module again


def rebuild_module(
    module_class: type[Module], path: Any, map_location: Any, weights_only: bool, given: dict[str, Any]
) -> Module:
    """Create the module of a checkpoint; see `FewShotClassifier.load_from_checkpoint`."""
    checkpoint = _read(path, map_location, weights_only)
    try:
        _, section = check_content(checkpoint)
        if section is None:
            module = _of_earlier_version(module_class, given)
        else:
            module = module_class(**_arguments(module_class, checkpoint, section, given))
            _restore_prompts(module, section.get("classes"))
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    except DtrapError as error:
        raise DtrapError(f"{_name(path)}: {error}") from error
    except Exception as error:  # whatever a constructor raises for values that it does not expect
        raise DtrapError(f"{_name(path)}: {_unreadable(f'{type(error).__name__}: {first_line(error)}')}") from error
    values = next(iter(module.tuner.adapter_state()), None)
    saved = checkpoint["state_dict"].get(f"tuner.{values}")
    return module if saved is None else module.to(saved.device)


def _name(path: Any) -> str:
    return str(path) if isinstance(path, str | Path) else "the checkpoint"


def _read(path: Any, map_location: Any, weights_only: bool) -> Any:
    try:
        file = Path(path).expanduser() if isinstance(path, str) else path
        return torch.load(file, map_location="cpu" if map_location is None else map_location, weights_only=weights_only)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise DtrapError(
            f"{_name(path)}: cannot read the checkpoint ({reason}). Pass the path of a .ckpt file."
        ) from error
    except Exception as error:
        raise DtrapError(
            f"{_name(path)}: refused, since it cannot be read as plain values and tensors ({type(error).__name__}): it "
            "is damaged, or it contains Python objects, which can run code. Use a checkpoint that Lightning saved of a "
            "FewShotClassifier."
        ) from error


def _of_earlier_version(module_class: type[Module], given: dict[str, Any]) -> Module:
    if "backbone" not in given:
        raise DtrapError(
            "the checkpoint does not say which backbone, tuner and settings it belongs to; an earlier version of dtrap "
            "wrote it. Pass them as in its training: load_from_checkpoint(path, backbone=..., tuner=..., "
            "objective=...), then call module.set_classes(...)."
        )
    return module_class(**given)


def _arguments(
    module_class: type[Any], checkpoint: dict[str, Any], section: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of the module: the given ones, and the checkpoint's for the rest."""
    # Those of a subclass that called `save_hyperparameters`.
    hyper = checkpoint.get(module_class.CHECKPOINT_HYPER_PARAMS_KEY) or {}
    names = inspect.signature(module_class.__init__).parameters
    arguments = {name: plain(value) for name, value in dict(hyper).items() if name in names}
    arguments |= {name: section["settings"][name] for name in SETTINGS if name in section["settings"]}
    if given.get("optimizer") is not None:
        arguments["learning_rate"] = None  # of which only one is allowed
    if given.get("lr_scheduler") is not None:
        arguments["final_rate"] = None
    own = [name for name in ("optimizer", "lr_scheduler") if name in section.get("own_optimization", ())]
    missing = [name for name in own if name not in given]
    if missing:
        warnings.warn(
            f"the checkpoint was trained with an {missing[0]} of its own, which it does not hold: predictions do not "
            f"depend on it, but pass {missing[0]}=... to train on.",
            stacklevel=4,
        )
    if "backbone" not in given:
        _check_files(section)
    for name, base in PARTS.items():
        if name not in given:
            arguments[name] = _build(section[name], base, name)
    return {**arguments, **given}


def _build(described: Any, base: type, kind: str) -> Any:
    """Create a backbone, tuner or objective of dtrap from its description.

    Raises:
        DtrapError: It is a class of another project, or an argument is not as expected.
    """
    try:
        return rebuild(described, base, kind)
    except DtrapError as error:
        reason = f"its {kind} {error}"
        if isinstance(error, ForeignClass):
            reason = f"its {error.option} is {error.shown} (not a class of dtrap), which is never created from a file."
        raise DtrapError(f"{reason} Pass it as in the training: load_from_checkpoint(path, {kind}=...).") from error


def _check_files(section: dict[str, Any]) -> None:
    """Raise a DtrapError if the backbone's weights are random, or a file of it is not there."""
    identifier, remedy = str(section["identifier"]), "load_from_checkpoint(path, backbone=...)"
    if _is_random(identifier):
        raise DtrapError(
            f"its backbone {identifier} has random weights, which no file and no name holds. Pass the backbone that it "
            f"was trained on: {remedy}."
        )
    missing = missing_files(section["files"])
    if missing:
        raise DtrapError(
            f"its backbone {identifier} was read from {next(iter(missing.values()))}, which is not there with the same "
            f"content. Pass the backbone with that file: {remedy}."
        )


def _restore_prompts(module: FewShotClassifier, classes: Any) -> None:
    """Give the module the class prompts of the checkpoint."""
    if classes is None:
        return
    if not all(isinstance(texts, list) and {*map(type, (name, *texts))} == {str} for name, texts in classes.items()):
        raise TypeError("class names and prompts are not texts")
    module.set_prompts(ClassPrompts.of(classes, module.backbone, distinct=False))
