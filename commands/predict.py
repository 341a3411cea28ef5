"""`dtrap predict`: classify a folder of images with a saved adapter."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from ..console import say
from ..datamodules.unlabeled import UnlabeledImages
from ..errors import DtrapError
from ..files import cannot_write, check_replaceable, no_formula, write_atomically
from ..protocol.adapters import is_standalone, load_adapter
from ..protocol.claims import counted
from ..protocol.preprocessing import read_preprocessing
from ..protocol.workers.images import LabelJob, concatenated, label, label_with
from ..protocol.workers.options import check_ray, parse_workers
from ..protocol.workers.pool import WorkerPool, uses_gpu
from .adapter_arguments import find_adapters

ANOTHER_FILE = "or name another file with --output."


def predict(arguments: list[str], console: Console) -> int:
    """Write a CSV with path, label and class probabilities of a folder's images; see `dtrap predict --help`.

    Returns:
        0, or 1 where no image could be read.

    Raises:
        DtrapError: A config, the adapter or the folder are not as expected.
    """
    (adapter,) = find_adapters(arguments, "predict", console)
    card, config = adapter.card, adapter.config
    output = Path(config.output)
    workers = None if config.protocol.workers is None else parse_workers(config.protocol.workers)
    if workers is not None:
        check_ray()
    _check_output(output)
    module = adapter.build()
    if not is_standalone(adapter.path):
        load_adapter(adapter.path, module, card)
    preprocessing = read_preprocessing(card.preprocessing, module.backbone, adapter.path)
    images = UnlabeledImages(config.images, preprocessing, (card.preprocessing or {}).get("value_range"))
    trainer = adapter.trainer_arguments()
    if workers is None:
        labeled = label(module, images, trainer, progress=console.is_terminal)
    else:
        job = LabelJob(adapter.path, card, config, trainer, images)
        with WorkerPool(workers, gpu=uses_gpu(trainer), say=partial(say, console)) as pool:
            labeled = label_with(pool, job, partial(say, console))
    probabilities = concatenated(labeled, len(card.class_names))
    unreadable = {str(path) for path, _ in labeled.unreadable}
    readable = [path for path in images.paths if str(path) not in unreadable]
    table = _table(readable, probabilities, card.class_names, escape_formulas=config.escape_formulas)
    write_atomically(output, table, ANOTHER_FILE)
    say(console, f"{counted(len(readable), 'image')} labeled: {output}")
    if images.left_out:
        say(console, images.left_out)
    reasons = [*(reason for _, reason in labeled.unreadable), *(f"{path}: {reason}" for path, reason in images.faults)]
    if reasons:
        say(console, f"{counted(len(reasons), 'image')} could not be read and left out:")
    for reason in reasons:
        say(console, f"  {reason}")
    return 0 if readable else 1


def _check_output(output: Path) -> None:
    """Raise a DtrapError before the work if its result could not be written."""
    if output.is_dir():
        raise DtrapError(f"--output {output} is a folder; expected the name of a CSV file.")
    check_replaceable(output, ANOTHER_FILE)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise cannot_write(output, error, ANOTHER_FILE) from error


def _table(
    paths: Sequence[Any], probabilities: torch.Tensor, class_names: Sequence[str], *, escape_formulas: bool
) -> str:
    """CSV with the columns path, label and one per class."""
    values = probabilities.double().numpy()
    names, files = list(class_names), list(map(str, paths))
    if escape_formulas:
        names, files = list(map(no_formula, names)), list(map(no_formula, files))
    frame = pd.DataFrame(values, columns=names)
    # A class may have the name of another column.
    frame.insert(0, "label", [names[label] for label in values.argmax(axis=1)], allow_duplicates=True)
    frame.insert(0, "path", files, allow_duplicates=True)
    return frame.to_csv(index=False, float_format="%.6f", lineterminator="\n")
