"""What a Lightning checkpoint says about its module, and how the module is created again from it.

A checkpoint holds plain values and tensors only. Classes are looked up by name among those of dtrap; nothing that a
file names is imported.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .. import __version__
from ..errors import DtrapError, first_line
from ..keywords import plain
from . import backbones, objective, tuners
from .backbones.base import Backbone
from .finite import check_finite
from .text_head import ClassPrompts, tokenize_classes
from .tuners.base import Tuner

if TYPE_CHECKING:
    from .few_shot_classifier import FewShotClassifier

SECTION = "dtrap"
FORMAT = "dtrap-checkpoint/1"
# Arguments of the module that are saved as they are.
SETTINGS = (
    "template", "descriptions", "learning_rate", "final_rate", "image_chunk", "text_chunk", "plain_views", "start_seed",
)  # fmt: skip
# Arguments of backbones that are not saved: where this machine keeps its downloads.
_OF_THE_MACHINE = ("cache_dir",)
_CHECKSUM = re.compile(r"-([0-9a-f]{8})$")

Module = TypeVar("Module", bound="FewShotClassifier")


# Saving


def describe(module: FewShotClassifier) -> dict[str, Any]:
    """Describe a module by plain values: versions, backbone, tuner, objective, settings and class prompts."""
    prompts = module.prompts
    return {
        "format": FORMAT,
        "version": __version__,
        "backbone": _describe_backbone(module.backbone),
        "tuner": _describe_part(module.tuner, tuners),
        "objective": _describe_part(module.objective, objective),
        "settings": {name: plain(getattr(module, name)) for name in SETTINGS},
        "own_optimization": [
            name for name in ("optimizer", "lr_scheduler") if getattr(module, f"own_{name}", None) is not None
        ],
        "classes": None
        if prompts is None
        else {name: list(getattr(prompts, name)) for name in ("class_names", "prompts", "per_class")},
    }


def _describe_part(part: Any, package: Any) -> dict[str, Any]:
    """Describe a tuner, a backbone or an objective; the arguments are None if they are not plain values."""
    kind = type(part)
    own = _class_named(kind.__name__, package) is kind
    arguments: dict[str, Any] | None = None
    with suppress(TypeError):
        arguments = {
            key: _describe_part(value, tuners) if isinstance(value, Tuner) else plain(value)
            for key, value in part.arguments.items()
        }
    name = kind.__name__ if own else f"{kind.__module__}.{kind.__qualname__}"
    return {"class": name, "own": own, "arguments": arguments}


def _describe_backbone(backbone: Backbone) -> dict[str, Any]:
    described = _describe_part(backbone, backbones)
    if described["arguments"] is not None:
        kept = {name: value for name, value in described["arguments"].items() if name not in _OF_THE_MACHINE}
        described["arguments"] = {name: _lasting(name, value, described["class"]) for name, value in kept.items()}
    unnamed = not described["own"] or _is_random(backbone.identifier)
    return {**described, "identifier": backbone.identifier, "weights": _weights_hash(backbone) if unnamed else None}


def _lasting(name: str, value: Any, backbone: str) -> Any:
    """Return an argument that names a local file or folder as an absolute path."""
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    folder = name == "tokenizer" or backbone == "Transformers"
    found = path.is_dir() if folder else path.suffix != "" and path.is_file()
    return str(path.resolve()) if found else value


def _is_random(identifier: str) -> bool:
    return identifier.endswith("/random")


def _weights_hash(backbone: Backbone) -> str:
    """Return type and SHA-256 of a backbone's own weights; computed once, since they are frozen."""
    known = getattr(backbone, "_weights_hash", None)
    if known is None:
        digest = hashlib.sha256()
        state = {name.replace(".base_layer.", "."): value for name, value in backbone.state_dict().items()}
        for name in sorted(name for name in state if ".lora_" not in name and isinstance(state[name], Tensor)):
            values = state[name].detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name} {values.dtype}".encode() + values.view(torch.uint8).numpy().tobytes())
        kind = str(next(backbone.parameters()).dtype).removeprefix("torch.")
        known = backbone._weights_hash = f"{kind} {digest.hexdigest()}"  # type: ignore[assignment]
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
    parts = ("backbone", "tuner", "objective", "settings")
    wrong = [name for name in parts if not isinstance(section.get(name), dict)]
    if wrong:
        raise _unreadable(f"'{wrong[0]}' is missing")
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
        check_backbone(module.backbone, section["backbone"])
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
        own = describe(module)
        _check_same("with the tuner", section["tuner"]["class"], own["tuner"]["class"])
        for name, value in (section["tuner"]["arguments"] or {}).items():
            _check_same(f"with {name}", value, (own["tuner"]["arguments"] or {}).get(name))
        scale = (section["objective"]["arguments"] or {}).get("logit_scale", module.objective.logit_scale)
        _check_same("with logit_scale", scale, module.objective.logit_scale)
        trained, here = section["classes"], own["classes"]
        if trained is not None and here is not None:
            _check_same("for the classes", trained["class_names"], here["class_names"])
            if not module.tuner.own_prompts:
                _check_same("with the class prompts", trained["prompts"], here["prompts"])
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise _unreadable(f"{type(error).__name__}: {first_line(error)}") from error


def _check_same(what: str, trained: Any, here: Any) -> None:
    if trained != here:
        raise DtrapError(
            f"the checkpoint was trained {what} {str(trained)[:200]}, but here it is {str(here)[:200]}. Use the data "
            "and the settings that it was trained with."
        )


def check_backbone(backbone: Backbone, saved: dict[str, Any]) -> None:
    """Raise a DtrapError unless a backbone has the weights that the checkpoint was trained on."""
    weights = saved.get("weights")
    if weights is not None:
        (kind, _, trained), (own_kind, _, here) = str(weights).partition(" "), _weights_hash(backbone).partition(" ")
        # Those of another precision cannot be compared.
        if kind == own_kind and trained != here:
            raise DtrapError(
                f"the checkpoint was trained on other weights of the backbone {backbone.identifier} (their SHA-256 "
                f"starts with {trained[:8]}, here it is {here[:8]}). Pass the same weights: "
                "load_from_checkpoint(path, backbone=...)."
            )
        return
    found = [_CHECKSUM.search(str(identifier)) for identifier in (saved.get("identifier"), backbone.identifier)]
    sums = [match.group(1) for match in found if match]
    if len(sums) == 2 and sums[0] == sums[1]:  # the same file under another name
        return
    _check_same("on the backbone", saved.get("identifier"), backbone.identifier)


def _unreadable(reason: str) -> DtrapError:
    return DtrapError(
        f"the checkpoint's section '{SECTION}' is not readable ({reason[:200]}): it is damaged or was not written by "
        "dtrap. Use another checkpoint, or pass backbone, tuner and objective."
    )


# Creating the module again


def rebuild(
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
        arguments["backbone"] = _build_backbone(section["backbone"])
    if "tuner" not in given:
        arguments["tuner"] = _build(section["tuner"], "tuner")
    if "objective" not in given:
        arguments["objective"] = _build(section["objective"], "objective")
    return {**arguments, **given}


def _class_named(name: Any, package: Any) -> type[Any] | None:
    """Return a class that a package of dtrap offers; None for any other name."""
    offered = getattr(package, "__all__", ("Objective",))
    found = getattr(package, name, None) if isinstance(name, str) and name in offered else None
    return found if isinstance(found, type) and not inspect.isabstract(found) else None


def _build(described: Any, kind: str) -> Any:
    """Create a backbone, tuner or objective of dtrap from its description.

    Raises:
        DtrapError: It is a class of another project, or the arguments are not plain.
    """
    packages = {"backbone": backbones, "tuner": tuners, "objective": objective}
    name, arguments = described["class"], described["arguments"]
    cls = _class_named(name, packages[kind])
    if cls is None or not isinstance(arguments, dict):
        reason = "not a class of dtrap" if cls is None else "its arguments are not plain values"
        raise DtrapError(
            f"its {kind} is {str(name)[:200]!r} ({reason}), which is never created from a file. Pass it as in the "
            f"training: load_from_checkpoint(path, {kind}=...)."
        )
    values = {}
    for key, value in arguments.items():
        nested = isinstance(value, dict) and value.keys() == {"class", "own", "arguments"}
        values[key] = _build(value, "tuner") if nested else value
    return cls(**values)


def _build_backbone(described: dict[str, Any]) -> Any:
    """Create the backbone with the same weights.

    Raises:
        DtrapError: Its weights are random, or a file of it is not there.
    """
    identifier, arguments = described["identifier"], described["arguments"]
    remedy = "load_from_checkpoint(path, backbone=...)"
    if _is_random(str(identifier)):
        raise DtrapError(
            f"its backbone {identifier} has random weights, which no file and no name holds. Pass the backbone that it "
            f"was trained on: {remedy}."
        )
    if isinstance(arguments, dict):
        paths = [Path(value) for value in arguments.values() if isinstance(value, str) and Path(value).is_absolute()]
        absent = [path for path in paths if not path.exists()]
        if absent:
            raise DtrapError(
                f"its backbone {identifier} was read from {absent[0]}, which is not there. Pass the backbone with that "
                f"file: {remedy}."
            )
    return _build(described, "backbone")


def _restore_prompts(module: FewShotClassifier, classes: Any) -> None:
    """Give the module the class prompts of the checkpoint."""
    if classes is None:
        return
    names, prompts, counts = (classes[name] for name in ("class_names", "prompts", "per_class"))
    texts = iter(prompts)
    of_class = {name: [next(texts) for _ in range(count)] for name, count in zip(names, counts, strict=True)}
    if not all(isinstance(text, str) for text in (*names, *prompts)) or next(texts, None) is not None:
        raise TypeError("class names and prompts do not match")
    tokens = tokenize_classes(of_class, module.backbone)
    module.set_prompts(ClassPrompts(tuple(names), tuple(prompts), tuple(counts), tokens))
