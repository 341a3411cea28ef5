"""Whole episodes of the demo: time of a method-episode, the part of it that is not steps, and episodes side by side."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path

import torch
from dtrap.commands.fit import fit
from dtrap.datamodules import ShapesDataModule
from dtrap.protocol.settings import ProtocolOptions
from rich.console import Console

from . import models
from .earlier import EarlierCommit
from .figures import Figure, Part, Report
from .measuring import Clock, NotRunError
from .plain import PlainModel, PlainTraining
from .settings import Settings

METHODS, EPOCHS = 2, 100  # of the demo
_number = count()


def run_demo(folder: str, episodes: int, *words: str, device: str = "cpu") -> float:
    """Run `dtrap fit` on the demo in this process; return its seconds."""
    run = Path(folder) / f"demo_{next(_number)}"
    asked = ["--config", "demo.yaml", "--protocol.episodes", str(episodes), "--protocol.folder", str(run), *words]
    asked += ["--trainer.accelerator", "gpu" if device == "cuda" else "cpu"]
    with Clock(device) as clock:
        fit(asked, Console(quiet=True))
    return clock.seconds


def needs(option: str) -> None:
    """Refuse if this version has no such option of the protocol."""
    if option not in ProtocolOptions.__annotations__:
        raise NotRunError(f"this version has no --protocol.{option}")


class Runner(EarlierCommit):
    """The earlier commit's episodes."""

    def __init__(self, settings: Settings) -> None:
        self.folder = str(Path(settings.folder) / "before_runs")
        super().__init__(settings, "episodes")

    def __call__(self, episodes: int, *words: str) -> float:
        """Run the demo there; return its seconds."""
        return self.ask(json.dumps([self.folder, episodes, *words]))["seconds"]


def one_episode(run: Callable[..., float], more: int, *words: str) -> float:
    """Return the seconds of an episode: what `more` of them add to a run of one, so that start-up is left out."""
    return (run(1 + more, *words) - run(1, *words)) / more


def plain_episode(number: int, epochs: int) -> float:
    """Return the seconds of the authors' loop on an episode of the demo: texts, steps, test."""
    data = ShapesDataModule("xray", way=5, shot=1, query=15)
    model = PlainModel(json.loads(models.TINY.read_text()), "vision", models.CLASSES)
    with Clock() as clock:
        data.set_episode(number)
        data.setup()
        (batch,) = list(data.train_dataloader())
        training = PlainTraining(model, batch, steps=max(epochs, 1))
        for _ in range(epochs):
            training.step()
        model.eval()
        with torch.no_grad():
            for queries in data.test_dataloader():
                (model.images(queries["images"]) @ model.texts().T).argmax(dim=1)
    return clock.seconds


def measure(settings: Settings, report: Report) -> None:
    """Add the time of a method-episode, ours, the authors' form and the earlier commit's in turn."""
    more, epochs = (1, 3) if settings.tiny else (3, EPOCHS)
    full, short = ["--trainer.max_epochs", str(epochs)], ["--trainer.max_epochs", "1"]
    found: dict[str, list[float]] = {name: [] for name in ("ours", "short", "plain", "before")}
    with ExitStack() as stack:
        runs = {"ours": lambda episodes, *words: run_demo(settings.folder, episodes, *words)}
        if settings.before is not None:
            runs["before"] = stack.enter_context(closing(Runner(settings)))
        for run in runs.values():
            run(1, *short)  # what is imported and drawn once
        while not settings.enough(len(found["ours"])):
            for name, run in runs.items():
                found[name].append(one_episode(run, more, *full) / METHODS)
            found["short"].append(one_episode(runs["ours"], more, *short) / METHODS)
            found["plain"].append(plain_episode(len(found["plain"]), epochs))
    report.add("episode.seconds", found["ours"])
    report.add_ratios("episode.authors", found["plain"], found["ours"])
    report.add_ratios("episode.before", found["before"], found["ours"])
    report.add("episode.overhead", found["short"])
    report.add("episode.share", 100 * statistics.median(found["short"]) / statistics.median(found["ours"]))


def measure_side_by_side(settings: Settings, report: Report) -> None:
    """Add how much faster eight demo episodes are in one batch than one after another."""
    needs("side_by_side")
    size = 2 if settings.tiny else 8
    epochs = ["--trainer.max_epochs", "2" if settings.tiny else str(EPOCHS), "--trainer.callbacks", "[]"]
    found: dict[int, list[float]] = {1: [], size: []}
    for _ in range(min(settings.repeats, 3)):
        for together, samples in found.items():
            words = ["--protocol.side_by_side", str(together), *epochs]
            shorter, longer = (run_demo(settings.folder, episodes, *words) for episodes in (size, 2 * size))
            samples.append((longer - shorter) / size / METHODS)
    report.add("side_by_side.seconds", found[size])
    report.add_ratios("side_by_side.ratio", found[1], found[size])


PARTS = (
    Part(
        "episode",
        measure,
        (
            Figure("episode.seconds", "Demo: a method-episode of 100 steps", "s"),
            Figure("episode.authors", "Demo: times as fast as the authors' form", "times"),
            Figure("episode.before", "Demo: times as fast as the earlier commit", "times", least=1.4),
            Figure("episode.overhead", "Demo: a method-episode of one step", "s"),
            Figure("episode.share", "Demo: the same as a share of 100 steps", "%"),
        ),
        devices=("cpu",),
    ),
    Part(
        "side_by_side",
        measure_side_by_side,
        (
            Figure("side_by_side.seconds", "Demo, eight episodes in one batch: a method-episode", "s"),
            Figure("side_by_side.ratio", "Demo, eight episodes in one batch: times as fast as one at a time", "times"),
        ),
        devices=("cpu",),
    ),
)
