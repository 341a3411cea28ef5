"""Names of methods after what differs in what is trained, and methods that are the same under two names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

from ..errors import DtrapError
from ..lightning_modules.backbones.base import Tower
from ..lightning_modules.tuners import Tuner
from .configuration import MethodConfig
from .folder_identity import Method
from .identity import ABSENT, Change, changes, identity, name_part
from .module_method import ModuleMethod
from .precision import PRECISIONS

SECTIONS = ("trainer", "model", "stage_switch")
# The weights that "svl" and "ra" in the name of the losses stand for.
USUAL_WEIGHTS = {"anti_visual_weight": (0.1, 0.001), "relation_weight": (3.0,)}
TUNER_CLASS = ("model", "tuner", "class_path")
NAME_BYTES = 120  # an adapter's file name has 255, with its episode and ending
KNOWN_CODE = ("dtrap.", "torch.", "lightning.")


def effective_settings(values: dict[str, Any], tuner: Tuner, *, keep: bool = False) -> dict[str, Any]:
    """Return the settings that decide what a method trains.

    The tuner's own learning rate and lambda stand where a config leaves them to the tuner.

    Args:
        values: The method's config.
        tuner: Its tuner.
        keep: Whether to keep settings without effect, such as the form of a relation loss of weight 0.
    """
    settings = identity({name: values.get(name, {}) for name in SECTIONS})
    model = settings.get("model", {})
    model = settings["model"] = dict(model.get("init_args", model))
    objective = (model.get("objective") or {}).get("init_args", {})
    if model.get("learning_rate") is None and model.get("optimizer") is None:
        model["learning_rate"] = tuner.learning_rate
    if objective.get("anti_visual_weight") is None:
        objective["anti_visual_weight"] = 0.001 if _trains(tuner) == {"text"} else 0.1
    _unify_spellings(settings)
    if not keep:
        _drop_without_effect(settings, objective, tuner)
    return settings


def _trains(tuner: Tuner) -> frozenset[Tower]:
    try:
        return tuner.trains
    except AttributeError:  # a tuner of the user's own that knows it only once it is attached
        return frozenset({"vision", "text"})


def _unify_spellings(settings: dict[str, Any]) -> None:
    """Write values that mean the same in one way."""
    trainer, model, stage = (settings.get(name, {}) for name in SECTIONS)
    precision = str(trainer.get("precision"))
    if precision in PRECISIONS:
        trainer["precision"] = PRECISIONS[precision]
    template = model.get("template")
    if isinstance(template, list) and len(template) == 1:
        model["template"] = template[0]
    for name in stage.keys() & {"start", "stop"}:  # 0.6 and 3/5
        value = str(stage[name]).removeprefix("Fraction(").removesuffix(")").replace(", ", "/")
        stage[name] = str(Fraction(value).limit_denominator(10**6))


def _drop_without_effect(settings: dict[str, Any], objective: dict[str, Any], tuner: Tuner) -> None:
    relations, visual = objective.get("relation_weight") != 0, objective["anti_visual_weight"] != 0
    unused = [] if relations else ["relation_form", "relation_source", "relation_temperature"]
    unused += [] if visual else ["visual_term"]
    if objective.get("relation_form", "cosine") == "cosine":
        unused.append("relation_temperature")
    for name in unused:
        objective.pop(name, None)
    if not relations or "vision" not in _trains(tuner):
        settings["model"].pop("plain_views", None)
    if not relations and not visual:
        settings.pop("stage_switch", None)


def same_settings(one: Method, other: Method) -> bool:
    """Whether two methods train the same with certainty.

    Modules of the Python interface may hold more than the arguments that they are described by. They are the same only
    if all their code is dtrap's, torch's and Lightning's, and their backbones have the same weights.
    """
    if isinstance(one, ModuleMethod) and isinstance(other, ModuleMethod):
        described = [method.values[name] for method in (one, other) for name in SECTIONS]
        if not (_has_known_code(described) and _same_weights(one, other)):
            return False
    elif type(one) is not type(other):
        return False
    return not changes(*(effective_settings(method.values, method.own_tuner) for method in (one, other)))


def _has_known_code(value: Any) -> bool:
    """Whether a description has dtrap's, torch's and Lightning's classes only, and no function without a name."""
    if isinstance(value, dict):
        path = value.get("class_path", KNOWN_CODE[0])
        return str(path).startswith(KNOWN_CODE) and all(map(_has_known_code, value.values()))
    if isinstance(value, list):
        return all(map(_has_known_code, value))
    return not (isinstance(value, str) and ("<lambda>" in value or "<locals>" in value))


def _same_weights(one: ModuleMethod, other: ModuleMethod) -> bool:
    backbones = one.module.backbone, other.module.backbone
    if backbones[0] is backbones[1]:
        return True
    first, second = (
        {name: value for name, value in backbone.state_dict().items() if ".lora_" not in name} for backbone in backbones
    )
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def find_same(methods: Sequence[Method]) -> dict[str, str]:
    """Return the name of the first method with the same settings, for every method that repeats another."""
    same: dict[str, str] = {}
    for position, method in enumerate(methods):
        first = next((other for other in methods[:position] if same_settings(other, method)), None)
        if first is not None:
            same[method.name] = first.name
    return same


def overlay_name(method: MethodConfig, losses: str, named: Sequence[tuple[MethodConfig, str]]) -> str:
    """Name the method of an overlay after its losses and all that it trains otherwise than the main method.

    Examples are `baseline`, `coop-svl-ra`, `lora-rank_4-svl-ra` and `svl-ra-max_epochs_50`.

    Args:
        method: The method.
        losses: Short name of its losses, see `Objective.method`.
        named: The methods before it with the names of their losses, the main one first.
    """
    found = _found_changes(named[0][0], method)
    name = _joined(found, named[0], method, losses)
    for other, other_losses in named:
        if other.name == name and not other.explicit:
            # Two overlays with the same tuner are told apart by what differs between them.
            more = _found_changes(other, method)
            name = "-".join([name, *_arguments(more, losses_differ=losses != other_losses)])
    return name if len(name.encode()) <= NAME_BYTES else f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _found_changes(reference: MethodConfig, method: MethodConfig) -> list[Change]:
    """The settings with effect that differ, without those that both leave to the tuner."""
    before = effective_settings(reference.values, reference.own_tuner, keep=True)
    now = effective_settings(method.values, method.own_tuner)
    found = [change for change in changes(before, now) if change[2] is not ABSENT]
    other_tuner = TUNER_CLASS in [path for path, *_ in found]
    if other_tuner and method.values["model"].get("learning_rate") is None:
        found = [change for change in found if change[0] != ("model", "learning_rate")]
    weights = (each.values["model"]["objective"].get("init_args", {}) for each in (reference, method))
    if all(given.get("anti_visual_weight") is None for given in weights):
        found = [change for change in found if change[0][-1] != "anti_visual_weight"]
    return found


def _joined(found: list[Change], main: tuple[MethodConfig, str], method: MethodConfig, losses: str) -> str:
    """Join backbone and tuner where they differ, the losses, and the other changed settings."""
    of_backbone: list[Change] = []
    of_tuner: list[Change] = []
    others: list[Change] = []
    for change in found:
        lists = {"model.backbone": of_backbone, "model.tuner": of_tuner}
        lists.get(".".join(change[0][:2]), others).append(change)
    parts = []
    if of_backbone:
        renamed = method.backbone != main[0].backbone
        parts += [name_part(method.backbone)] if renamed else _arguments(of_backbone)
    if of_tuner:
        parts.append(method.tuner_name.replace("-", "_"))  # a hyphen separates the parts of a name
        other = TUNER_CLASS in [path for path, *_ in of_tuner]
        parts += [] if other else _arguments(of_tuner)
    return "-".join([*parts, losses, *_arguments(others, losses_differ=losses != main[1])])


def _arguments(found: Sequence[Change], *, losses_differ: bool = False) -> list[str]:
    """Parts such as `rank_4` for changed settings; the name of the losses may contain some of them."""
    parts: dict[str, None] = {}
    for path, old, new in found:
        name = path[-1]
        switched = name in USUAL_WEIGHTS and (old == 0) != (new == 0) and (new == 0 or new in USUAL_WEIGHTS[name])
        if losses_differ and (switched or name == "visual_term"):
            continue
        words = [key for key in path if key not in ("init_args", "class_path") and not key.isdigit()]
        text = str(new).rpartition(".")[2] if name == "class_path" else _text(new)
        parts[name_part(f"{words[-1]}_{text}")] = None
    return list(parts)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def check_distinct(methods: Sequence[MethodConfig], origins: Sequence[str]) -> None:
    """Refuse two methods of one name, or of the same settings unless the user named both.

    Args:
        methods: The methods, the main one first.
        origins: Where each comes from, for the message: "the main method", or the overlay.

    Raises:
        DtrapError: Two methods cannot be told apart.
    """
    for position, method in enumerate(methods):
        for other, origin in zip(methods[:position], origins, strict=False):
            if not (method.explicit and other.explicit) and same_settings(other, method):
                raise DtrapError(
                    f"protocol.compare: {origins[position]} trains the same as {origin} ('{other.name}'): no setting "
                    "that has an effect differs. Leave it out or change a value in it. To show one run under two "
                    "names, name both: --protocol.method NAME, and `method` in the overlay's section `protocol`."
                )
            if method.name.casefold() == other.name.casefold():  # files are named after methods
                raise DtrapError(
                    f"protocol.compare: {origins[position]} and {origin} both have the name '{method.name}'. Give "
                    "another one to the main method with --protocol.method NAME, or to an overlay as `method` in its "
                    "section `protocol`."
                )
