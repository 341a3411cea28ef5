"""What tuner and objective need of the batches of a training, checked before its first step."""

from __future__ import annotations

from typing import Any

from ..errors import DtrapError
from .objective import Objective
from .tuners.base import Tuner


def is_full_batch(datamodule: Any, loader: Any) -> bool | None:
    """Return whether every training batch is the whole support batch, as the data module or the loader states.

    Args:
        datamodule: The data module, or None. Its attribute `full_batch` counts first.
        loader: The training loader, or None; its attribute `full_batch` counts if the data module has none.

    Returns:
        None if neither states it.
    """
    for source in (datamodule, loader):
        stated = getattr(source, "full_batch", None)
        if stated is not None:
            return bool(stated)
    return None


def check_tuner_batches(tuner: Tuner, datamodule: Any) -> None:
    """Refuse a tuner that cannot be trained with the mini-batches of a data module.

    Raises:
        DtrapError: It needs the whole support batch, or more rows than a mini-batch has.
    """
    if is_full_batch(datamodule, None) is not False:
        return
    if tuner.trains_itself:
        remedy = "Use episodes" if getattr(datamodule, "streams", False) else "Set --data.batch_size null"
        raise DtrapError(
            f"{_batches(datamodule)}, but the tuner {tuner.name} makes several optimizer steps of its own with all "
            f"support rows. {remedy}, or use another tuner."
        )
    option, size = _size(datamodule)
    devices = getattr(getattr(datamodule, "sampler", None), "world_size", 1)
    least, each = tuner.least_rows * devices, "" if devices == 1 else f" on each of {devices} devices"
    if size is not None and size < least:
        raise DtrapError(
            f"{option} is {size}, but the tuner {tuner.name} needs {tuner.least_rows} rows or more in a step{each}. "
            f"Set --{option} {least} or more."
        )


def check_objective_batches(objective: Objective, full_batch: bool | None, datamodule: Any) -> None:
    """Refuse an objective that needs the whole support batch in every step of a training with mini-batches.

    Args:
        objective: The losses; a term without weight needs nothing.
        full_batch: Whether every training batch is the whole support batch; None if unknown.
        datamodule: The data module or None, for the message.

    Raises:
        DtrapError: It uses the relations of the previous step, or a prototype of each class, or relations of a single
            row.
    """
    if full_batch is not False:
        return
    if objective.uses_previous:
        raise DtrapError(
            f"relation_source is 'previous', but {_batches(datamodule)}, and relations of the previous step belong to "
            "other images. For mini-batches give --model.objective.relation_source current, or train with the full "
            "batch."
        )
    option, size = _size(datamodule)
    if size == 1 and objective.relation_weight != 0:
        raise DtrapError(
            f"{option} is 1, with which L_ra is constant: a single row has no relations. Set --{option} 2 or more, or "
            "--model.objective.relation_weight 0."
        )
    if objective.effective_anti_visual_weight != 0 and objective.visual_term in ("visual", "negated_visual"):
        raise DtrapError(
            f"visual_term is '{objective.visual_term}', which needs a prototype of every class, but "
            f"{_batches(datamodule)}, and a mini-batch may lack a class. Set --model.objective.visual_term "
            "anti_visual, or train with the full batch."
        )


def read_batch_kind(module: Any) -> bool | None:
    """Return whether the batches of a module's fit are the full one; see `is_full_batch`.

    Where nobody states it, they are if the relations of the previous step are asked for: the objective compares the
    rows in every step then.

    Raises:
        DtrapError: The module's objective cannot work with them.
    """
    objective = module.objective
    full_batch = is_full_batch(module.data_source, module.trainer.train_dataloader)
    if objective.staged:
        check_objective_batches(objective, full_batch, module.data_source)
    return True if full_batch is None and objective.uses_previous else full_batch


def warn_unstated(objective: Objective) -> None:
    """Warn once that nobody says whether a batch with views is the full one."""
    objective.warn_once(
        "full_batch",
        "neither the data module nor the loader has the attribute `full_batch`, so relations are computed with all "
        "rows of a batch. Set full_batch = True on one of them if each batch is the whole support batch.",
    )


def _size(datamodule: Any) -> tuple[str, int | None]:
    """Return the option for the size of a mini-batch, and its value."""
    if getattr(datamodule, "streams", False):
        return "data.all_way.batch_size", datamodule.sampler.settings.batch_size
    return "data.batch_size", getattr(datamodule, "batch_size", None)


def _batches(datamodule: Any) -> str:
    if getattr(datamodule, "streams", False):
        return "the all-way protocol streams mini-batches"
    option, size = _size(datamodule)
    return "the loader yields mini-batches" if size is None else f"{option} is {size}"
