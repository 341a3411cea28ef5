"""The data of a task that a tuner reads before its first step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DtrapError
from .several_processes import divided_units, gathered, processes
from .tuners.base import Batch, TaskData

if TYPE_CHECKING:
    from .few_shot_classifier import FewShotClassifier


def all_names(datamodule: Any) -> Sequence[str]:
    """Return the names of all classes of the data set that the task is drawn from; none if they are unknown."""
    names = getattr(getattr(datamodule, "index", None), "class_names", ())
    # A data module of somebody else may use these names for other things.
    return names if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names) else ()


def support_batches(module: FewShotClassifier) -> Iterable[Batch]:
    """Return all support rows once.

    Raises:
        DtrapError: The loader has no length.
    """
    batches = getattr(module.data_source, "support_batches", None)
    if batches is not None:  # the loader repeats the full batch, or streams without end
        return batches()
    length = module.trainer.num_training_batches
    if not isfinite(length):
        raise DtrapError(
            f"the tuner {module.tuner.name} reads all training images before its first step, but the loader has no "
            "length. Use a loader with a length, or set Trainer(limit_train_batches=...) to a number."
        )
    loader: Any = module.trainer.train_dataloader
    return islice(iter(loader), int(length))


def query_batch(module: FewShotClassifier) -> Batch:
    """Return the unlabeled queries of a transductive tuner in their views.

    Raises:
        DtrapError: There are none.
    """
    datamodule = module.data_source
    if not getattr(datamodule, "has_query", False):
        raise DtrapError(
            f"the tuner {module.tuner.name} is transductive: it adapts to unlabeled queries, but there are none. Use "
            "a data module with queries (--data.query, or --data.query_root of a folder), or another tuner."
        )
    return datamodule.query_in_views()


def task_data(module: FewShotClassifier, batches: Iterable[Batch], query: Batch | None) -> TaskData:
    """Return the support rows of batches, encoded if the image tower is frozen, and the images of the queries."""
    parts = []
    for batch in map(module.on_device, batches):
        part: Batch = {name: batch[name] for name in ("labels", "view", "sample_id") if name in batch}
        if "vision" in module.tuner.trains:
            part["images"] = batch["images"]
        else:
            part["encoded"] = module.encode_images(batch["images"], module.rows_of(batch).ids)
        parts.append(part)
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if processes(module.trainer) > 1 and not hasattr(module.data_source, "support_batches"):
        columns = _everyones(module, columns)
    query_images = None if query is None else module.on_device(query)["images"]
    return TaskData(**columns, text_features=module.text_features(), query_images=query_images)


def _everyones(module: FewShotClassifier, columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of all processes, of a loader that Lightning has divided among them, without repeated ones."""
    loader: Any = module.trainer.train_dataloader
    rows = None if getattr(loader, "batch_sampler", None) is None else divided_units(loader)
    return {name: gathered(column, module.trainer, module.device)[:rows] for name, column in columns.items()}
