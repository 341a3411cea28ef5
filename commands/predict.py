"""`dtrap predict`: classify images with a saved adapter."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ..console import say
from ..datamodules.unlabeled import UnlabeledImages
from ..errors import DtrapError
from ..files import cannot_write, check_replaceable, write_atomically
from ..protocol.adapters import is_standalone, load_adapter
from ..protocol.claims import counted
from ..protocol.classifier import Classifier, unreadable_images
from ..protocol.known_classes import accuracy_lines, known_classes
from ..protocol.prediction_table import REJECTED, UNSURE, Predictions, check_unsure, csv_of, free_name
from ..protocol.rejection import Threshold
from ..protocol.sorted_copies import check_sort_into, sort_into
from ..protocol.workers.images import Labeled, LabelJob, concatenated, label, label_with
from ..protocol.workers.options import check_ray, parse_workers
from ..protocol.workers.pool import WorkerPool, uses_gpu
from .adapter_arguments import SavedAdapter, find_adapters
from .predict_options import as_parsed, taken_images

ANOTHER_FILE = "or name another file with --output."


def predict(arguments: list[str], console: Console) -> int:
    """Write a CSV with label, confidence and class probabilities of images; see `dtrap predict --help`.

    Returns:
        0, or 1 where no image could be read.

    Raises:
        DtrapError: A config, the adapter or the images are not as expected.
    """
    words, given = taken_images(arguments)
    (adapter,) = find_adapters(as_parsed(words), "predict", console)
    config = adapter.config
    images = given or _as_list(config.images)
    if not images:
        raise DtrapError("predict: --images is missing. Give images, folders, patterns or tables: --images PATH.")
    output, sorted_folder = Path(config.output), None if config.sort_into is None else Path(config.sort_into)
    check_unsure(config.unsure)
    if config.protocol.workers is not None:
        parse_workers(config.protocol.workers)
        check_ray()
    _check_output(output, images, overwrite=config.overwrite)
    classifier = _load(adapter)
    threshold = classifier.threshold(config.reject, config.reject_by)
    data = classifier.read(images)
    if sorted_folder is not None:
        check_sort_into(sorted_folder, sorted({image.folder for image in data.given.images} - {""}))
    labeled = _label(adapter, classifier, data, threshold, console)
    found = classifier.predictions(data, labeled, config.unsure, threshold)
    write_atomically(output, csv_of(found.frame, escape_formulas=config.escape_formulas), ANOTHER_FILE)
    tell = partial(say, console)
    tell(f"{counted(len(found.paths), 'image')} labeled: {output}")
    _tell_about(classifier, data, labeled, found, threshold, config.unsure, tell)
    if sorted_folder is not None:
        _sort(classifier, data, found, sorted_folder, tell)
    _tell_unreadable(data, labeled, tell)
    return 0 if found.paths else 1


def _as_list(images: Any) -> list[str]:
    return [] if images is None else [images] if isinstance(images, str) else list(images)


def _load(adapter: SavedAdapter) -> Classifier:
    module = adapter.build()
    if not is_standalone(adapter.path):
        load_adapter(adapter.path, module, adapter.card)
    return Classifier(module, adapter.card, adapter.path, adapter.trainer_arguments())


def _label(
    adapter: SavedAdapter, classifier: Classifier, data: UnlabeledImages, threshold: Threshold | None, console: Console
) -> Labeled:
    """Compute the scores in this process or on workers."""
    config, trainer = adapter.config, classifier.trainer
    zero_shot = threshold is not None and threshold.kind == "zero_shot"
    if config.protocol.workers is None:
        return label(classifier.module, data, trainer, zero_shot=zero_shot, progress=console.is_terminal)
    job = LabelJob(adapter.path, adapter.card, config, trainer, data, zero_shot)
    workers = parse_workers(config.protocol.workers)
    with WorkerPool(workers, gpu=uses_gpu(trainer), say=partial(say, console)) as pool:
        return label_with(pool, job, partial(say, console))


def _check_output(output: Path, images: Sequence[str], *, overwrite: bool) -> None:
    """Raise a DtrapError before the work if its result could not be written."""
    if output.is_dir():
        raise DtrapError(f"--output {output} is a folder; expected the name of a CSV file.")
    check_replaceable(output, ANOTHER_FILE)
    if output.exists() and not overwrite:
        raise DtrapError(f"{output} exists. Replace it with --overwrite, or name another file with --output.")
    if any(os.path.exists(path) and output.exists() and os.path.samefile(path, output) for path in images):
        raise DtrapError(f"--output {output} is one of the --images, which it would replace. Name another file.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise cannot_write(output, error, ANOTHER_FILE) from error


def _tell_about(
    classifier: Classifier,
    data: UnlabeledImages,
    labeled: Labeled,
    found: Predictions,
    threshold: Threshold | None,
    unsure: float | None,
    tell: Callable[[str], None],
) -> None:
    """Say what the confidences rest on, what was withheld, and the accuracy where classes are known."""
    for note in data.given.notes:
        tell(f"{note}.")
    tell(classifier.describe_confidence())
    names = classifier.class_names
    if unsure is not None:
        called = free_name(UNSURE, names)
        tell(f"{counted(int(found.unsure.sum()), 'image')} below {unsure:g} labeled '{called}'.")
    if threshold is not None:
        called = free_name(REJECTED, names)
        tell(f"{counted(int(found.rejected.sum()), 'image')} labeled '{called}': {threshold}.")
    unreadable = {path for path, _ in labeled.unreadable}
    readable = [image for image in data.given.images if image.name not in unreadable]
    saved = ((classifier.card.data or {}).get("init_args") or {}).get("class_names")
    known = known_classes(readable, names, saved if isinstance(saved, dict) else None)
    scores = concatenated(labeled, len(names))[:, 0]
    for line in accuracy_lines(found, known, names, scores, classifier.temperature):
        tell(line)


def _sort(
    classifier: Classifier, data: UnlabeledImages, found: Predictions, folder: Path, tell: Callable[[str], None]
) -> None:
    """Copy the images by label and say what became of them."""
    names = classifier.class_names
    labels = [*names, free_name(UNSURE, names), free_name(REJECTED, names)]
    done = sort_into(folder, found.paths, found.labels, labels)
    there = f", {done.present:,} there from before" if done.present else ""
    tell(f"{counted(done.copied, 'image')} copied into {folder}{there}.")
    for name, folder_name in done.renamed:
        tell(f"  '{name}' is in the folder {folder_name}")
    for path, reason in done.faults:
        tell(f"  {path} could not be copied: {reason}")


def _tell_unreadable(data: UnlabeledImages, labeled: Labeled, tell: Callable[[str], None]) -> None:
    if data.left_out:
        tell(data.left_out)
    unreadable = unreadable_images(data, labeled)
    if unreadable:
        tell(f"{counted(len(unreadable), 'image')} could not be read and left out:")
    faults = len(unreadable) - len(data.faults)
    for number, (path, reason) in enumerate(unreadable):
        tell(f"  {reason}" if number < faults else f"  {path}: {reason}")
