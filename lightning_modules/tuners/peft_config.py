"""Configs of peft by class path and arguments: which of them a frozen tower can be tuned with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import peft
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from ...errors import DtrapError, expected_one_of, first_line
from ...keywords import plain

_PROMPTS = "it adds prompts to a language model, which a tower of images and class prompts does not have"
_REFUSED = {
    "ADALORA": "it changes its ranks in peft's own training loop",
    "XLORA": "it mixes adapters that are trained already",
    "POLY": "it needs a task number with every batch",
    "FROD": "parts of its start are not in its saved values",
    "ADAPTION_PROMPT": _PROMPTS,
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": _PROMPTS,
    "CARTRIDGE": _PROMPTS,
    "CPT": _PROMPTS,
    "TRAINABLE_TOKENS": "it trains words of a vocabulary",
    "LN_TUNING": "it trains norms, and the targets here are Linear layers",
}
_WITH_DATA = {
    "eva": "starts from activations of training data",
    "corda": "starts from activations of training data",
    "lora_ga": "starts from gradients of training data",
    "loftq": "is for quantized weights",
}
_CHOSEN_HERE = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters",
    "feedforward_modules",
)  # fmt: skip
_NEUTRAL = {"bias": "none", "inference_mode": False}
# Their random numbers differ between chunks of one batch, or they are for other models.
_UNSUPPORTED = (
    "modules_to_save", "trainable_token_indices", "layer_replication", "megatron_config", "rank_pattern",
    "alpha_pattern", "init_weights_from", "fan_in_fan_out", "module_dropout", "rank_dropout", "use_qalora",
)  # fmt: skip


def described(config: Any) -> dict[str, Any]:
    """Return class path and arguments of a config, given as such or as an object of peft.

    Raises:
        DtrapError: It is neither, or an argument is not a plain value.
    """
    if isinstance(config, PeftConfig):
        given = {}
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.init and value != _default(field) and field.name not in ("peft_type", "peft_version"):
                given[field.name] = sorted(value) if isinstance(value, set) else value
        config = {"class_path": f"peft.{type(config).__name__}", "init_args": given}
    if isinstance(config, str):
        config = {"class_path": config}
    if not isinstance(config, Mapping) or not {"class_path"} <= config.keys() <= {"class_path", "init_args"}:
        raise DtrapError(
            f"PEFT: config is {str(config)[:80]!r}; expected a config of peft as class_path and init_args, such as "
            '{"class_path": "peft.VeraConfig", "init_args": {"r": 64}}.'
        )
    try:
        arguments = plain(dict(config.get("init_args") or {}))
    except (TypeError, ValueError) as error:
        raise DtrapError(f"PEFT: config.init_args has a value that is not plain ({first_line(error)}).") from error
    return {"class_path": str(config["class_path"]), "init_args": arguments}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def config_class(path: str) -> type[PeftConfig]:
    """Return the class of peft that a path or a bare name stands for; nothing is imported.

    Raises:
        DtrapError: It is no config of peft.
    """
    module, _, name = path.rpartition(".")
    known = {each.__name__: each for each in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    if name not in known or (module and module.partition(".")[0] != "peft"):
        raise DtrapError(f"PEFT: config.class_path is {path[:80]!r}; {expected_one_of(name, sorted(known))}")
    return known[name]


def make_config(described_config: Mapping[str, Any], **targets: Any) -> PeftConfig:
    """Make a config of peft from its description, for these target modules.

    Raises:
        DtrapError: The type or an argument is not supported, or peft refuses it.
    """
    path, arguments = described_config["class_path"], described_config["init_args"]
    cls = config_class(path)
    kind = next(str(PeftType(kind).value) for kind, each in PEFT_TYPE_TO_CONFIG_MAPPING.items() if each is cls)
    if kind in _REFUSED or kind not in PEFT_TYPE_TO_TUNER_MAPPING:
        raise DtrapError(f"PEFT: {cls.__name__} cannot be used here: {_REFUSED.get(kind, 'it adapts no layers')}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name, value in arguments.items():
        if name not in fields:
            raise DtrapError(f"PEFT: {cls.__name__} has no argument '{name}'; {expected_one_of(name, sorted(fields))}")
        if name in _CHOSEN_HERE:
            raise DtrapError(f"PEFT: config.{name} is given; leave it out, `targets` and `blocks` choose the layers.")
        neutral = _NEUTRAL.get(name, _default(fields[name]))
        if (name in _UNSUPPORTED or name in _NEUTRAL) and value and value != neutral:
            raise DtrapError(f"PEFT: config.{name} is {value}, which is not supported here; leave it out.")
    start = str(arguments.get("init_lora_weights")).lower()
    if start in _WITH_DATA:
        raise DtrapError(
            f"PEFT: init_lora_weights '{start}' {_WITH_DATA[start]}, which an episode's reset does not have; expected "
            "true, gaussian, orthogonal, olora, pissa or pissa_niter_16."
        )
    try:
        return cls(**arguments, **{name: value for name, value in targets.items() if name in fields})
    except (TypeError, ValueError, ImportError) as error:
        raise DtrapError(f"PEFT: peft {peft.__version__} refuses {cls.__name__} ({first_line(error)}).") from error


def tuner_class(config: PeftConfig) -> Any:
    """Return peft's class that puts the adapters of a config on a model."""
    return PEFT_TYPE_TO_TUNER_MAPPING[PeftType(config.peft_type)]


def short_name(config: PeftConfig) -> str:
    """Return what a config is commonly called, for file names: lora, dora, pissa, vera, ..."""
    kind = str(PeftType(config.peft_type).value).lower()
    start = str(getattr(config, "init_lora_weights", "")).lower()
    if kind == "lora" and getattr(config, "use_dora", False):
        return "dora"
    return start.partition("_")[0] if kind == "lora" and start.startswith(("pissa", "olora")) else kind
