"""`dtrap test`: test saved adapters again."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console

from ..console import say
from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from ..protocol.adapters import check_classes, is_standalone, load_adapter
from ..protocol.claims import counted
from ..protocol.configuration import build_data
from ..protocol.episode import EpisodeRecorder, callbacks_of, episode_trainer, parts_of, without_expected_warnings
from ..protocol.explanation import explained_use
from ..protocol.measured import TESTED, ZERO_SHOT
from ..protocol.measures import measure
from ..protocol.precision import tf32_allowed
from ..protocol.preprocessing import use_card_preprocessing
from ..protocol.progress import EpisodeProgress
from ..protocol.run_folder import Row
from ..protocol.summary import render, summarize
from .adapter_arguments import SavedAdapter, find_adapters
from .parser import to_values


def test(arguments: list[str], console: Console) -> int:
    """Test saved adapters on the queries of their own episodes; see `dtrap test --help`.

    Raises:
        DtrapError: A config, an adapter or the data are not as expected.
    """
    saved = find_adapters(arguments, "test", console)
    data = _data_of(saved)
    methods = _methods_of(saved)
    progress = EpisodeProgress(len(saved), methods, unit=data.unit, console=console)
    progress.total = len(saved)  # not every method need have an adapter of every episode
    rows: dict[Path, Row] = {}
    with progress:
        for cli in dict.fromkeys(adapter.cli for adapter in saved):  # one model at a time
            alike = [adapter for adapter in saved if adapter.cli is cli]
            module = alike[0].build()
            trainers: dict[str, Trainer] = {}
            for adapter in alike:
                precision = adapter.precision
                if precision not in trainers:
                    trainers[precision] = episode_trainer(adapter.trainer_arguments(), [EpisodeRecorder(progress)])
                progress.begin(len(rows))
                _set_episode(adapter, data, module)
                with tf32_allowed(trainers[precision]):
                    rows[adapter.path] = _tested(adapter, module, data, trainers[precision])
                progress.finish(rows[adapter.path])
    if len(saved) <= 10:
        for adapter in saved:
            before = "" if adapter.card.accuracy is None else f", {adapter.card.accuracy:.1f} % when it was saved"
            low, high = rows[adapter.path]["binomial_interval"]
            rests = f"{counted(rows[adapter.path]['test_images'], 'test image')}, 95 % {low:.1f} to {high:.1f}"
            say(console, f"{adapter.path}: {rows[adapter.path]['accuracy']:.1f} %{before} ({rests})")
    episodes = max(row["episode"] for row in rows.values()) + 1
    summary = summarize(list(rows.values()), data.description, methods, episodes=episodes, unit=data.unit)
    summary["episodes"] = max(method["episodes"] for method in summary["methods"].values())
    render(summary, console)
    return 0


def _data_of(saved: list[SavedAdapter]) -> FewShotDataModule:
    """Return the data module of the adapters' config.

    Raises:
        DtrapError: They were trained on different data, or there is nothing to test on.
    """
    parsed = {json.dumps(to_values(cli)["data"]): cli for cli in dict.fromkeys(adapter.cli for adapter in saved)}
    if len(parsed) > 1:
        raise DtrapError(
            f"{saved[0].path.parent} has adapters of {len(parsed)} different settings of the data. Test those of each "
            "data set alone: --adapter FILE."
        )
    data = build_data(saved[0].config)
    if not data.has_query:
        raise DtrapError(
            "no query images, so there is nothing to test on. Give --data.query_root FOLDER with images that were not "
            "used in the training, or the value of --data.held_out that the run had."
        )
    return data


def _methods_of(saved: list[SavedAdapter]) -> list[str]:
    """Return the methods in the order of their run: the main one, which the others are compared with, first."""
    places = {}
    for adapter in saved:
        card = adapter.card
        # Only compared methods have a config of their own; the card of an earlier version does not list the methods.
        compared = any((folder / f"config.{card.method}.yaml").exists() for folder in adapter.path.parents[:2])
        places[card.method] = card.methods.index(card.method) if card.method in card.methods else int(compared)
    return sorted(places, key=places.__getitem__)


def _set_episode(adapter: SavedAdapter, data: FewShotDataModule, module: FewShotClassifier) -> None:
    """Set data and classes to the adapter's episode; raise a DtrapError if it was trained on another one."""
    path, card = adapter.path, adapter.card
    data.set_episode(card.episode)
    if card.seed != data.seed:
        raise DtrapError(
            f"{path}: trained with seed {card.seed}, but data.seed is {data.seed}, which draws other images. "
            f"Give --data.seed {card.seed}."
        )
    check_classes(path, data.class_names, card)
    use_card_preprocessing(data, card.preprocessing, path)
    module.descriptions = card.prompts
    module.set_classes(data.class_names, data.template, data_set=data.index.class_names)


def _tested(adapter: SavedAdapter, module: FewShotClassifier, data: FewShotDataModule, trainer: Trainer) -> Row:
    """Return the accuracies of one adapter; a standalone checkpoint has no zero-shot model."""
    row: Row = {"method": adapter.card.method, "episode": adapter.card.episode, "classes": list(data.class_names)}
    if is_standalone(adapter.path):
        return row | _measured(trainer, module, data)
    load_adapter(adapter.path, module, adapter.card)
    row |= _measured(trainer, module, data)
    with module.zero_shot():
        found = _measured(trainer, module, data)
    return row | {ZERO_SHOT + key: found.get(key) for key in TESTED}


def _measured(trainer: Trainer, module: FewShotClassifier, data: FewShotDataModule) -> Row:
    with without_expected_warnings(), explained_use([*callbacks_of(trainer), *parts_of(module), data]):
        trainer.test(module, datamodule=data, verbose=False)
    copied = {"copied_test_images": data.copied_queries} if data.copied_queries else {}
    return measure(module, data.class_names) | copied
