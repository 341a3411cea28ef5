"""`dtrap test`: test saved adapters again."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console

from ..console import say
from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from ..protocol.adapters import AdapterCard, check_classes, is_standalone, load_adapter, read_card
from ..protocol.configuration import build_data, build_trainer_arguments
from ..protocol.episode import EpisodeRecorder, episode_trainer, without_expected_warnings
from ..protocol.preprocessing import use_card_preprocessing
from ..protocol.progress import EpisodeProgress
from ..protocol.run_folder import Row
from ..protocol.summary import render, summarize
from .adapter_arguments import build_adapted, find_adapters


def test(arguments: list[str], console: Console) -> int:
    """Test saved adapters on the queries of their own episodes; see `dtrap test --help`.

    Raises:
        DtrapError: A config, an adapter or the data are not as expected.
    """
    cli, adapters = find_adapters(arguments, "test")
    config, cards = cli.config, {path: read_card(path) for path in adapters}
    data, module = build_data(config), build_adapted(config, *next(iter(cards.items())))
    if not data.has_query:
        raise DtrapError(
            "no query images, so there is nothing to test on. Give --data.query_root FOLDER with images that were not "
            "used in the training, or the value of --data.held_out that the run had."
        )
    rows: list[Row] = []
    methods = list(dict.fromkeys(card.method for card in cards.values()))
    progress = EpisodeProgress(len(cards), ["test"], unit=data.unit, console=console)
    trainer = episode_trainer(build_trainer_arguments(config), [EpisodeRecorder(progress)])
    with progress:
        for number, (path, card) in enumerate(cards.items()):
            progress.begin(number)
            data.set_episode(card.episode)
            if card.seed != data.seed:
                raise DtrapError(
                    f"{path}: trained with seed {card.seed}, but data.seed is {data.seed}, which draws other images. "
                    f"Give --data.seed {card.seed}."
                )
            check_classes(path, data.class_names, card)
            use_card_preprocessing(data, card.preprocessing, path)
            module.descriptions = card.prompts
            module.set_classes(data.class_names, data.template)
            rows.append(_tested(path, card, module, data, trainer))
            progress.finish(rows[-1] | {"method": "test"})
    if len(cards) <= 10:
        for (path, card), row in zip(cards.items(), rows, strict=True):
            saved = "" if card.accuracy is None else f", {card.accuracy:.1f} % when it was saved"
            say(console, f"{path}: {row['accuracy']:.1f} %{saved}")
    episodes = max(row["episode"] for row in rows) + 1
    summary = summarize(rows, data.description, methods, episodes=episodes, unit=data.unit)
    summary["episodes"] = max(method["episodes"] for method in summary["methods"].values())
    render(summary, console)
    return 0


def _tested(path: Path, card: AdapterCard, module: FewShotClassifier, data: FewShotDataModule, trainer: Trainer) -> Row:
    """Return the accuracies of one adapter; a standalone checkpoint has no zero-shot model."""
    row: Row = {"method": card.method, "episode": card.episode}
    if is_standalone(path):
        return row | {"accuracy": _accuracy(trainer, module, data)}
    load_adapter(path, module, card)
    row["accuracy"] = _accuracy(trainer, module, data)
    with module.zero_shot():
        return row | {"zero_shot_accuracy": _accuracy(trainer, module, data)}


def _accuracy(trainer: Trainer, module: FewShotClassifier, data: FewShotDataModule) -> float:
    with without_expected_warnings():
        return float(trainer.test(module, datamodule=data, verbose=False)[0]["test/accuracy"])
