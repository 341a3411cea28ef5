"""Validation images of an episode: images of its classes that are neither support nor query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import DtrapError
from .collection import ImageCollection
from .episode import Task
from .index import listing


def with_validation(
    data: ImageCollection, task: Task, shots: int, published: Sequence[list[int]] | None = None
) -> Task:
    """Return a task with validation images; its classes, support and query images stay.

    The images are the last spares of a class, so that an unreadable image is replaced by the same one as without them.

    Args:
        data: The images.
        task: A task without validation.
        shots: Validation images per class.
        published: Images of each class's validation split, in the order of the draw; None without published splits.

    Raises:
        DtrapError: A class has too few images left (unless `small_classes` is "skip"), or no class has any.
    """
    own = [[] for _ in task.classes] if published is None else published
    rest = [max(len(spare) - shots, 0) for spare in task.spare]
    validation = [
        found[:shots] if found else spare[kept:] for found, spare, kept in zip(own, task.spare, rest, strict=True)
    ]
    spare = [order if found else order[:kept] for found, order, kept in zip(own, task.spare, rest, strict=True)]
    names = [data.index.class_names[label] for label in task.classes]
    small = [f"'{name}' has {len(found)}" for name, found in zip(names, validation, strict=True) if len(found) < shots]
    lower = "Add images, or lower --data.validation_shots, --data.shot or --data.query."
    if small and (data.small_classes == "error" or not any(validation)):
        raise DtrapError(
            f"{data.title}: too few images are left for validation under {data.root}: {listing(small)}; needed: "
            f"{shots} (validation_shots). {lower}"
        )
    if small:
        data.warn_once(f"fewer than {shots} validation images: {listing(small)}")
    return replace(task, validation=validation, spare=spare)
