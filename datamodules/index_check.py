"""Checking that an index keeps the contract of `ImageIndex`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import numpy as np

from ..errors import DtrapError
from .index import SPLITS, ImageIndex, listing, prefix_of

_CONTRACT = (
    "An ImageIndex has strings as paths, class_names and roots, one integer label per path with 0 <= label < "
    "len(class_names), no duplicates, roots (if any) that the paths start with, without a trailing separator, "
    "splits that are None or one of train, val, test per path, and groups that are None or one string per path."
)


def check_index(index: ImageIndex, source: str) -> None:
    """Validate an index before anything is drawn from it.

    A wrong label would otherwise merge two classes or drop images without a word.

    Args:
        index: Any index.
        source: Where it comes from, such as "MyDataModule.scan".

    Raises:
        DtrapError: It breaks the contract; the message says where, and what the contract is.
    """
    fault = next(_faults(index), None)
    if fault is not None:
        raise DtrapError(f"{source}: {fault} {_CONTRACT}")


def _faults(index: ImageIndex) -> Iterator[str]:
    """Yield what is wrong; a check relies on those before it."""
    if not isinstance(index, ImageIndex):
        yield f"returned {type(index).__name__} instead of an ImageIndex."
        return
    paths, names = index.paths, index.class_names
    for kind, texts in (("paths", paths), ("class_names", names), ("roots", index.roots)):
        odd = {*map(type, texts)} - {str}
        if odd:
            yield f"{kind} has a {odd.pop().__name__}, expected strings."
    if len(index.labels) != len(paths):
        yield f"{len(paths)} paths but {len(index.labels)} labels."
    labels = np.asarray(index.labels)
    if len(paths) and labels.dtype.kind not in "iu":
        yield f"labels are not integers but {labels.dtype}."
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        yield f"label {labels[wrong[0]]} of {paths[wrong[0]]} has no class name; there are {len(names)} class names."
    for kind, texts in (("path", paths), ("class name", names)):
        if len(set(texts)) < len(texts):
            yield f"duplicate {kind} {Counter(texts).most_common(1)[0][0]!r}."
    # `relative` cuts off a root and one separator; a path that keeps its root would make a run depend on the place.
    prefixes = tuple(map(prefix_of, index.roots))
    outside = [path for path in paths if not path.startswith(prefixes)] if prefixes else []
    outside = [path for path in outside if os.path.isabs(path) or os.curdir not in index.roots]
    if outside:
        yield f"path {outside[0]!r} does not start with one of the roots {', '.join(index.roots)}."
    if index.splits is not None:
        if len(index.splits) != len(paths):
            yield f"{len(paths)} paths but {len(index.splits)} splits."
        unknown = set(index.splits) - {*SPLITS}
        if unknown:
            yield f"unknown split {listing(sorted(map(repr, unknown)))}."
    if index.groups is not None:
        if len(index.groups) != len(paths):
            yield f"{len(paths)} paths but {len(index.groups)} groups."
        odd = {*map(type, index.groups)} - {str}
        if odd:
            yield f"groups has a {odd.pop().__name__}, expected strings."
