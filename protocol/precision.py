"""The precision of a run: what the device does best unless it is given, settled once and held in the run folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy

from ..errors import DtrapError
from .run_folder import ELSEWHERE

# Lightning's older words for a precision.
PRECISIONS = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
FULL, HALF, BRAIN = "32-true", "16-mixed", "bf16-mixed"
# The default of every device before `trainer.precision` could be null.
FORMER = FULL
# The Trainer's options that choose a device.
OF_DEVICE = ("accelerator", "devices")


class HasPrecision(Protocol):
    """A method of a run.

    Attributes:
        name: Name of the method.
        values: Its settings as values of JSON.
        default_precision: Whether `trainer.precision` was null, so that the device decides.
    """

    name: str
    values: dict[str, Any]
    default_precision: bool

    def set_precision(self, precision: str) -> None:
        """Write a precision into the settings and the Trainer's arguments."""


def canonical(precision: object) -> str:
    """Return a precision as Lightning names it today; null is Lightning's own default."""
    return FULL if precision is None else PRECISIONS.get(str(precision), str(precision))


def device_of(arguments: Mapping[str, Any]) -> torch.device | None:
    """Return the device that a Trainer with these arguments runs on; None if Lightning refuses them."""
    chosen = {name: arguments[name] for name in OF_DEVICE if arguments.get(name) is not None}
    if isinstance(arguments.get("strategy"), SingleDeviceStrategy):
        return torch.device(arguments["strategy"].root_device)
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(
                **chosen,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                plugins=[LightningEnvironment()],  # a launcher's variables must not matter
            )
        return torch.device(trainer.strategy.root_device)
    except Exception:  # the run's own Trainer says what is wrong
        return None
    finally:
        logger.setLevel(level)


def default_precision(device: torch.device) -> str:
    """Return what a device does best at the paper's accuracy.

    That is bf16-mixed on a GPU that computes in it (compute capability 8 or more), 16-mixed on an older one, as in the
    authors' code, and 32-true elsewhere.
    """
    if device.type != "cuda":
        return FULL
    try:
        return BRAIN if torch.cuda.get_device_capability(device)[0] >= 8 else HALF
    except (RuntimeError, AssertionError):  # no driver that could say it
        return HALF


def describe_device(device: torch.device | None) -> str:
    """Return such as "CPU" or "cuda:0, NVIDIA H100"."""
    if device is None:
        return "unknown device"
    if device.type != "cuda":
        return device.type.upper()
    try:
        return f"{device}, {torch.cuda.get_device_name(device)}"
    except (RuntimeError, AssertionError):
        return str(device)


def settle_precision(
    methods: Sequence[HasPrecision], stored: Mapping[str, Any] | None = None, default: str | None = None
) -> None:
    """Write the precision that a run uses into the settings of its methods.

    A null becomes the default of the device; in a folder from before it could be null, what the code did then. 16-mixed
    becomes bf16-mixed on a CPU, where Lightning runs that instead.

    Args:
        methods: The methods of the run.
        stored: The content of identity.json in a folder that is resumed; None or {} for a new run.
        default: What null becomes in a new folder; None asks the device of this process, which may not do the work.
    """
    devices: dict[str, torch.device | None] = {}
    for method in methods:
        trainer = method.values["trainer"]
        if _has_plugin(trainer.get("plugins")):
            continue  # it is the precision; Lightning refuses both
        known = _former(stored, method.name)
        method.default_precision |= trainer.get("precision") is None
        if known is not None and (method.default_precision or canonical(trainer["precision"]) == known):
            method.set_precision(known if method.default_precision else trainer["precision"])
            continue
        if not method.default_precision and canonical(trainer["precision"]) != HALF:
            continue
        if method.default_precision and default is not None:
            method.set_precision(default)
            continue
        arguments = method_arguments(method)
        key = repr([arguments.get(name) for name in OF_DEVICE])
        if key not in devices:
            devices[key] = device_of(arguments)
        device = devices[key]
        if method.default_precision:
            # Without such a device nothing can be run, but the results of a finished folder can be shown.
            method.set_precision(_stored(stored, method.name) if device is None else default_precision(device))
        elif device is not None and device.type == "cpu":
            warnings.warn(f"'{method.name}': a CPU has no {HALF}; {BRAIN} is used instead.", stacklevel=2)
            method.set_precision(BRAIN)


def method_arguments(method: Any) -> Mapping[str, Any]:
    """Return the Trainer's arguments of a method without instantiating any."""
    parsed = getattr(method, "parsed", None)
    return method.trainer if parsed is None else vars(parsed.trainer)  # type: ignore[no-any-return]


def _has_plugin(plugins: Any) -> bool:
    """Whether one of the Trainer's plugins, described by values of JSON, is a precision."""
    every = plugins if isinstance(plugins, list) else [plugins]
    paths = [plugin.get("class_path") if isinstance(plugin, dict) else plugin for plugin in every]
    return any("precision" in str(path).rpartition(".")[2].lower() for path in paths)


def _former(stored: Mapping[str, Any] | None, name: str) -> str | None:
    """Return the precision of a method in a folder from before the option could be null; None for other folders."""
    if not stored or "default_precision" in stored:
        return None
    return _stored(stored, name)


def _stored(stored: Mapping[str, Any] | None, name: str) -> str:
    """Return the precision of a method in a folder, of the main method for an unknown one."""
    methods = (stored or {}).get("methods", {})
    known = methods.get(name, methods.get((stored or {}).get("main"), {}))
    return canonical(known.get("trainer", {}).get("precision", FORMER))


def defaults_of(methods: Sequence[HasPrecision], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of identity.json that says for which methods a device has decided, and which."""
    if stored and "default_precision" not in stored:
        return {}  # a folder of an earlier version stays one
    chosen = {m.name: describe_device(device_of(method_arguments(m))) for m in methods if m.default_precision}
    return {"default_precision": {**stored.get("default_precision", {}), **chosen}}


def refusal(folder: object, method: HasPrecision, stored: Mapping[str, Any], known: Mapping[str, Any]) -> str | None:
    """Return why a run may not go on in a folder whose results have another precision, and how it can.

    Args:
        folder: The run folder.
        method: The method, with its settled precision.
        stored: The content of the folder's identity.json.
        known: The method's settings there.

    Returns:
        None unless the device is the reason for the difference.
    """
    before, now = canonical(known.get("trainer", {}).get("precision")), canonical(method.values["trainer"]["precision"])
    device = device_of(method_arguments(method))
    on_cpu = device is not None and device.type == "cpu"
    there = stored.get("default_precision", {}).get(method.name)
    start = f"{folder} holds results in {before}{f' ({there})' if there else ''}"
    if on_cpu and before == HALF:
        remedy = f"A CPU has no {HALF}: resume on a GPU with --trainer.precision {before}."
    elif method.default_precision:
        remedy = f"Resume in the folder's precision with --trainer.precision {before}."
    else:
        return None
    return f"{start}, but {now} is used here ({describe_device(device)}). {remedy} {ELSEWHERE}"


def same_request(stored: object, asked: object) -> bool:
    """Whether a run that asks for a precision, or for null, may have settled the stored one."""
    return asked is None or (canonical(asked), canonical(stored)) == (HALF, BRAIN)


def check_study(folder: object, method: HasPrecision, stored: Mapping[str, Any]) -> None:
    """Refuse to mix the defaults of two devices in the cells of a study.

    Args:
        folder: The study's folder.
        method: A method of a cell to run, with its settled precision.
        stored: The content of the identity.json of a cell with results.

    Raises:
        DtrapError: The device of that cell has decided otherwise.
    """
    chosen = stored.get("default_precision", {})
    known = next((stored["methods"][name] for name in chosen if name in stored["methods"]), None)
    if known is None or not method.default_precision:
        return
    before, now = canonical(known.get("trainer", {}).get("precision")), method.values["trainer"]["precision"]
    if before != now:
        device = describe_device(device_of(method_arguments(method)))
        raise DtrapError(
            f"{folder}: its results are in {before} ({next(iter(chosen.values()))}), but {now} is used here "
            f"({device}). Give --trainer.precision {before} for all cells, or choose another folder with --folder."
        )


def lines_about(methods: Sequence[HasPrecision]) -> list[str]:
    """Return what a user should know of the precision at the start of a run."""
    lines = []
    chosen = [method for method in methods if method.default_precision]
    device = device_of(method_arguments(chosen[0])) if chosen else None
    settled = chosen[0].values["trainer"].get("precision") if chosen else None
    if device is not None and device.type != "cpu" and settled != FULL:
        lines.append(f"Precision: {settled} on {describe_device(device)} (--trainer.precision 32-true for full)")
    if device is not None and device.type == "cpu" and settled == FULL and multiplies_bf16():
        lines.append("This processor computes in bfloat16: --trainer.precision bf16-mixed is faster, in a new folder")
    return lines


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bfloat16; without them bf16-mixed is slower."""
    # Private in torch; `torch.cpu.get_capabilities`, which is public, is newer than the oldest torch that dtrap takes.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(probe() for probe in (getattr(torch.cpu, name, None) for name in names) if probe is not None)


@contextmanager
def tf32_allowed(trainer: Trainer) -> Iterator[bool]:
    """Within it, what stays in float32 in a mixed precision may use TF32 on a GPU; yield whether it is used.

    In 32-true torch's own setting holds, which is full float32.
    """
    before = torch.get_float32_matmul_precision()
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if on_gpu and str(trainer.precision) in (HALF, BRAIN):
        torch.set_float32_matmul_precision("high")
    try:
        yield on_gpu and torch.get_float32_matmul_precision() != "highest"
    finally:
        if torch.get_float32_matmul_precision() != before:
            torch.set_float32_matmul_precision(before)
