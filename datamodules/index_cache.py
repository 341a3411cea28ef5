"""The index of a large data set beside the run, so that a second start need not list a million files again."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Any

from .index import ImageIndex
from .reads import Reads, noted_reads

logger = logging.getLogger(__name__)

FORMAT = "dtrap-index/2"
LEAST_IMAGES = 20_000  # fewer are listed in less than a second

Run = tuple[Any, int]


def cached_index(file: Path | None, key: dict[str, Any], root: Path, scan: Callable[[], ImageIndex]) -> ImageIndex:
    """The index in `file`, if it still fits, or else a scanned one, which is left there if it is large.

    It fits as long as no folder that was listed, no table that was read, no folder above one of these (up to the root)
    and nothing in the latter has changed.

    Args:
        file: Where the index is kept; None for nowhere.
        key: What a scan depends on besides the files; a kept index of another key is not used.
        root: The data root.
        scan: Makes the index.
    """
    content = None if file is None else _read(file)
    if (
        content is not None
        and content["key"] == key
        and content["signature"] == _signature(content["folders"], content["files"], root)
    ):
        return _index(content)
    started = time.time_ns()
    with noted_reads() as reads:
        index = scan()
    if file is not None and len(index.paths) >= LEAST_IMAGES:
        made = _content(index, key, root, reads)
        signature = made["signature"]
        if signature is not None and all(entry[1] < started for entry in signature):  # nothing changed meanwhile
            _write(file, made)
    return index


def _signature(folders: Sequence[str], files: Sequence[str], root: Path) -> list[list[Any]] | None:
    """What changes with the folders, those above, the files and what lies beside them; None where one is gone."""
    top = os.path.abspath(root)
    above = {top, *(os.path.dirname(file) for file in files)}
    for folder in (*folders, *above):
        parent = os.path.dirname(folder)
        while parent not in above and parent.startswith(top):
            above.add(parent)
            parent = os.path.dirname(parent)
    try:
        signature: list[list[Any]] = [[folder, os.stat(folder).st_mtime_ns] for folder in folders]
        for folder in sorted(above):
            with os.scandir(folder) as entries:
                within = sorted([e.name, e.stat().st_mtime_ns, e.stat().st_size] for e in entries)
            signature.append([folder, os.stat(folder).st_mtime_ns, within])
    except OSError:
        return None
    return signature


def _content(index: ImageIndex, key: dict[str, Any], root: Path, reads: Reads) -> dict[str, Any]:
    places = [(folder, [os.path.basename(p) for p in paths]) for folder, paths in groupby(index.paths, os.path.dirname)]
    folders = sorted({os.path.abspath(folder) for folder, _ in places} | reads.folders)
    files = sorted(reads.files)
    return {
        "format": FORMAT,
        "key": key,
        "folders": folders,
        "files": files,
        "signature": _signature(folders, files, root),
        "images": places,
        "labels": _runs(index.labels),
        "splits": None if index.splits is None else _runs(index.splits),
        "class_names": index.class_names,
        "roots": index.roots,
        "missing": index.missing,
        "notes": index.notes,
    }


def _index(content: dict[str, Any]) -> ImageIndex:
    return ImageIndex(
        paths=[f"{folder}{os.sep}{name}" for folder, names in content["images"] for name in names],
        labels=_values(content["labels"]),
        class_names=content["class_names"],
        roots=tuple(content["roots"]),
        missing=tuple(content["missing"]),
        notes=tuple(content["notes"]),
        splits=None if content["splits"] is None else _values(content["splits"]),
    )


def _runs(values: Iterable[Any]) -> list[Run]:
    return [(value, sum(1 for _ in same)) for value, same in groupby(values)]


def _values(runs: Iterable[Run]) -> list[Any]:
    return list(chain.from_iterable(repeat(value, count) for value, count in runs))


def _read(file: Path) -> dict[str, Any] | None:
    """The content of a kept index; None where there is none, or it is damaged: it can always be made again."""
    try:
        content = json.loads(file.read_text(encoding="utf-8", errors="surrogateescape"))
        return content if content["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, content: dict[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        os.replace(temporary, file)
    except OSError as error:
        logger.warning("%s: the index cannot be kept (%s); the next start lists the files again.", file, error)
        with suppress(OSError):
            temporary.unlink()
