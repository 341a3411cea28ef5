"""`dtrap test` and `dtrap predict`: saved adapters at work."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from rich.console import Console

from ..datamodules.few_shot import FewShotDataModule
from ..datamodules.unlabelled import UnlabelledImages
from ..datamodules.views import Preprocessing
from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.tuners import Tuner
from .adapters import (
    AdapterCard,
    check_classes,
    check_tuner,
    find_adapters,
    is_plain,
    load_adapter,
    only_adapter,
    read_card,
    without_description_file,
)
from .configuration import build_data, build_module, build_part, build_trainer_arguments
from .episode import TestProgress, episode_trainer, without_expected_warnings
from .export import load_exported
from .progress import EpisodeProgress
from .results import Row, cannot_write, write_atomically
from .summary import render, summarise

ANOTHER_FILE = "or name another file with --output."


def test(arguments: list[str], console: Console) -> int:
    """Test saved adapters on the queries of their own episodes; see `dtrap test --help`.

    Raises:
        DtrapError: A config, an adapter or the data are not as expected.
    """
    cli, adapters = find_adapters(arguments, "test")
    config, cards = cli.config, {path: read_card(path) for path in adapters}
    data, module = build_data(config), _build(config, *next(iter(cards.items())))
    if not data.has_query:
        raise DtrapError(
            "no query images, so there is nothing to test on: give --data.query_root FOLDER (or the --data.held_out "
            "share that the run had)."
        )
    rows: list[Row] = []
    methods = list(dict.fromkeys(card.method for card in cards.values()))
    progress = EpisodeProgress(len(cards), ["test"], unit=data.unit, console=console)
    trainer = episode_trainer(build_trainer_arguments(config), [TestProgress(progress)])
    with progress:
        for number, (path, card) in enumerate(cards.items()):
            progress.begin(number)
            data.set_episode(card.episode)
            _check_seed(path, card, data)
            check_classes(path, data.class_names, card)
            module.descriptions = card.prompts
            module.set_classes(data.class_names, data.template)
            rows.append(_tested(path, card, module, data, trainer))
            progress.finish(rows[-1] | {"method": "test"})
    for path, card, row in zip(cards, cards.values(), rows, strict=True):
        saved = "" if card.accuracy is None else f", {card.accuracy:.1f} % when it was saved"
        if len(cards) <= 10:
            console.print(f"{path}: {row['accuracy']:.1f} %{saved}", soft_wrap=True, markup=False)
    episodes = max(row["episode"] for row in rows) + 1
    summary = summarise(rows, data.description, methods, episodes=episodes, unit=data.unit)
    summary["episodes"] = max(method["episodes"] for method in summary["methods"].values())
    render(summary, console)
    return 0


def predict(arguments: list[str], console: Console) -> int:
    """Write a CSV with path, label and class probabilities of a folder's images; see `dtrap predict --help`.

    Returns:
        0, or 1 where no image could be read.

    Raises:
        DtrapError: A config, the adapter or the folder are not as expected.
    """
    cli, adapters = find_adapters(arguments, "predict")
    config, adapter = cli.config, only_adapter(cli, adapters)
    card = read_card(adapter)
    output = Path(config.output)
    _check_output(output)
    module = _build(config, adapter, card)
    if not is_plain(adapter):
        load_adapter(adapter, module, card)
    preprocessing = Preprocessing.of(module.backbone) or Preprocessing()
    images = UnlabelledImages(config.images, preprocessing)
    with without_expected_warnings():
        trainer = episode_trainer(build_trainer_arguments(config), [], progress=console.is_terminal)
        batches: Any = trainer.predict(module, images.batches())
    probabilities = torch.cat(batches) if batches else torch.empty(0, len(card.class_names))
    unreadable = {str(path) for path, _ in images.unreadable}
    readable = [path for path in images.paths if str(path) not in unreadable]
    write_atomically(output, _table(readable, probabilities, card.class_names).encode(), ANOTHER_FILE)
    console.print(f"{_images(len(readable))} labelled: {output}", soft_wrap=True, markup=False)
    if unreadable:
        console.print(f"{_images(len(unreadable))} could not be read and not in the table:", markup=False)
    for _, reason in images.unreadable:
        console.print(f"  {reason}", soft_wrap=True, markup=False)
    return 0 if readable else 1


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _check_output(output: Path) -> None:
    """Raise a DtrapError before the work where its result could not be written."""
    if output.is_dir():
        raise DtrapError(f"--output {output} is a folder; expected the name of a CSV file.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise cannot_write(output, error, ANOTHER_FILE) from error


def _table(paths: Sequence[Any], probabilities: torch.Tensor, class_names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", *class_names])
    for path, row in zip(paths, probabilities.double().tolist(), strict=True):
        label = class_names[max(range(len(row)), key=row.__getitem__)]
        writer.writerow([path, label, *(f"{value:.6f}" for value in row)])
    return text.getvalue()


def _build(config: Namespace, adapter: Path, card: AdapterCard) -> FewShotClassifier:
    """The module of the config, or of the exported folder that the adapter is."""
    if is_plain(adapter):
        return load_exported(adapter, card)
    check_tuner(adapter, build_part(Tuner, config.model.tuner).name, card)
    return build_module(without_description_file(config, card))


def _tested(path: Path, card: AdapterCard, module: FewShotClassifier, data: FewShotDataModule, trainer: Trainer) -> Row:
    """Accuracies of one adapter; a plain checkpoint has no zero-shot model any more."""
    row: Row = {"method": card.method, "episode": card.episode}
    if is_plain(path):
        return row | {"accuracy": _accuracy(trainer, module, data)}
    load_adapter(path, module, card)
    row["accuracy"] = _accuracy(trainer, module, data)
    with module.zero_shot():
        return row | {"zero_shot_accuracy": _accuracy(trainer, module, data)}


def _accuracy(trainer: Trainer, module: FewShotClassifier, data: FewShotDataModule) -> float:
    with without_expected_warnings():
        return float(trainer.test(module, datamodule=data, verbose=False)[0]["test/accuracy"])


def _check_seed(path: Path, card: AdapterCard, data: FewShotDataModule) -> None:
    if card.seed != data.seed:
        raise DtrapError(
            f"{path}: trained with seed {card.seed}, but data.seed is {data.seed}; the images would be others. "
            f"Give --data.seed {card.seed}."
        )
