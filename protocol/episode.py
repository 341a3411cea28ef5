"""One method on one episode: zero-shot test, fit, test."""

from __future__ import annotations

import copy
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from ..callbacks import StageSwitch
from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from .checkpoint import SeededSteps, StepCheckpoint
from .progress import EpisodeProgress
from .run_folder import Row

# Confusions by class names and query images.
ZeroShots = dict[tuple[tuple[str, ...], tuple[int, ...]], Tensor]

# What Lightning says of loaders and modules that are meant to be so.
_EXPECTED_WARNINGS = (
    r".*does not have many workers.*",
    r".*defined a `validation_step` but have no `val_dataloader`.*",
    r".*dataloader is not resumable.*",
    r".*configure_optimizers` returned `None`.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*number of training batches .* is smaller than the logging interval.*",
    r".*`Trainer.fit` stopped.*",
)


@contextmanager
def without_expected_warnings() -> Iterator[None]:
    """Within it, Lightning's warnings about what is meant to be so are not shown."""
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


class EpisodeRecorder(Callback):
    """Keeps the losses of the last suppressed step and of the last step and the time, and reports every step.

    Args:
        on_step: Called after each optimiser step with the share of the run that one step is.
    """

    def __init__(self, on_step: Callable[[float], None]) -> None:
        self.on_step = on_step
        self._share = 1.0
        self._started = time.monotonic()
        self._boundary: dict[str, Tensor] | None = None
        self._end: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Losses and time so far, for a task that is resumed from a checkpoint."""
        return {"boundary": self._boundary, "end": self._end, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the losses and the time of before the checkpoint."""
        self._started -= state_dict["seconds"]
        self._boundary, self._end = state_dict["boundary"], state_dict["end"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the share of the run that one step is."""
        self._share = 1 / max(int(trainer.estimated_stepping_batches), 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep this step's terms, without waiting for the device."""
        self._end = {name: value for name, value in outputs.items() if name != "loss"}
        if self._suppressed(pl_module):
            self._boundary = self._end
        self.on_step(self._share)

    @staticmethod
    def _suppressed(module: LightningModule) -> bool:
        return isinstance(module, FewShotClassifier) and module.objective.progress is not None

    @property
    def seconds(self) -> float:
        """Time since the task began, of a resumed one with that up to its checkpoint."""
        return time.monotonic() - self._started

    @property
    def losses(self) -> dict[str, dict[str, float] | None]:
        """The terms at the stage boundary and at the end."""
        return {"boundary": _floats(self._boundary), "end": _floats(self._end)}


class Interrupts(Callback):
    """Ends a run at the next batch where Ctrl-C came while Python ignores exceptions, as in a fork of workers.

    Use as a context manager around the run.
    """

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> Interrupts:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, *_: object) -> None:
        self._came = True
        raise KeyboardInterrupt

    def _check(self) -> None:
        if self._came:
            raise KeyboardInterrupt

    def on_train_batch_start(self, *_: Any) -> None:
        """End here."""
        self._check()

    def on_validation_batch_start(self, *_: Any) -> None:
        """End here."""
        self._check()

    def on_test_batch_start(self, *_: Any) -> None:
        """End here."""
        self._check()


class TestProgress(Callback):
    """Shows how far a test of many batches is.

    Args:
        progress: Where it is shown.
    """

    def __init__(self, progress: EpisodeProgress) -> None:
        self.progress = progress

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Tell the number of this batch."""
        self.progress.test(batch_idx + 1, int(trainer.num_test_batches[dataloader_idx]))


def _floats(terms: dict[str, Tensor] | None) -> dict[str, float] | None:
    return None if terms is None else {name: float(value) for name, value in terms.items()}


def episode_trainer(arguments: dict[str, Any], callbacks: list[Callback], *, progress: bool = False) -> Trainer:
    """A Trainer bound to one device, without logger and checkpoints of its own.

    Args:
        arguments: The Trainer's arguments from the config.
        callbacks: Callbacks besides those of the config.
        progress: Whether it has a progress bar of its own.

    Raises:
        DtrapError: Lightning refuses an argument, or an episode would run on several devices or test nothing.
    """
    plugins = arguments.get("plugins") or []
    plugins = plugins if isinstance(plugins, list) else [plugins]
    configured = arguments.get("callbacks") or []
    configured = configured if isinstance(configured, list) else [configured]
    settings = {
        **arguments,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": progress,
        "enable_model_summary": False,
        # A launcher's variables (torchrun, SLURM) must not turn an episode into a distributed run.
        "plugins": [*plugins, LightningEnvironment()],
        # Copies: what a callback such as EarlyStopping has seen of one episode must not reach the next.
        "callbacks": [*copy.deepcopy(configured), *callbacks],
    }
    try:
        trainer = Trainer(**settings)
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        shown = ("accelerator", "devices", "precision")
        given = ", ".join(f"{name} {arguments[name]!r}" for name in shown if name in arguments)
        reason = " ".join(str(error).split())[:500].rstrip(".!")
        raise DtrapError(f"trainer ({given}): {reason}. Change that option of the trainer.") from error
    if trainer.num_devices != 1 or trainer.num_nodes != 1:
        raise DtrapError(
            f"trainer.devices is {arguments.get('devices')!r}, which is {trainer.num_devices} devices; an episode runs "
            "on one. Set trainer.devices to 1, or to a list with one device such as [2]."
        )
    if trainer.limit_test_batches == 0:
        raise DtrapError("trainer.limit_test_batches is 0, so that no query would be tested. Leave it out.")
    return trainer


def run_episode(
    module: FewShotClassifier,
    data: FewShotDataModule,
    arguments: dict[str, Any],
    stage_switch: StageSwitch,
    progress: EpisodeProgress,
    checkpoint: StepCheckpoint | None = None,
    zero_shots: ZeroShots | None = None,
) -> Row:
    """Zero-shot test, fit and test of a module on the data module's current episode.

    Args:
        module: Backbone, tuner and objective.
        data: Gives the episode.
        arguments: The Trainer's arguments from the config.
        stage_switch: The stage of SVL and RA.
        progress: Told of every step and test batch.
        checkpoint: Where to go on from, if it is there, and what to leave on the way.
        zero_shots: What earlier zero-shot tests of this method counted; a test split comes again with every seed.

    Returns:
        The row of this episode without its method.

    Raises:
        KeyboardInterrupt: The run was interrupted.
        DtrapError: The data or the settings do not allow the episode.
    """
    recorder = EpisodeRecorder(progress.advance)
    with without_expected_warnings(), Interrupts() as interrupts:
        callbacks: list[Callback] = [stage_switch, recorder, TestProgress(progress), interrupts]
        if checkpoint is not None:
            callbacks += [SeededSteps(data.episode_seed("step")), checkpoint]
        trainer = episode_trainer(arguments, callbacks)
        try:
            zero_shot = _zero_shot(trainer, module, data, zero_shots) if data.has_query else None
            torch.manual_seed(data.episode_seed("training"))
            if checkpoint is not None and checkpoint.found:
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint.path, weights_only=True)
            else:
                trainer.fit(module, datamodule=data)
            if data.has_query:
                trainer.test(module, datamodule=data, verbose=False)
        except MisconfigurationException as error:
            reason = " ".join(str(error).split())[:500].rstrip(".!")
            raise DtrapError(f"trainer: {reason}. Change that option of the trainer.") from error
        except SystemExit as stop:  # how Lightning passes on Ctrl-C and SIGTERM
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from stop
    row: Row = {"episode": data.episode, "seed": data.seed, "classes": list(data.class_names)}
    row |= _accuracies(zero_shot, module, data.class_names)
    return row | {"losses": recorder.losses, "seconds": round(recorder.seconds, 3)}


def _zero_shot(trainer: Trainer, module: FewShotClassifier, data: FewShotDataModule, known: ZeroShots | None) -> Tensor:
    """Confusion of the backbone without the tuner, tested only where it is not known."""
    images = None if known is None else (tuple(data.class_names), tuple(data.query_ids))
    if known is not None and images in known:
        return known[images]
    with module.zero_shot():
        trainer.test(module, datamodule=data, verbose=False)
    counts = module.confusion.compute().cpu()
    if known is not None and images is not None:
        known[images] = counts
    return counts


def _accuracies(zero_shot: Tensor | None, module: FewShotClassifier, class_names: list[str]) -> Row:
    if zero_shot is None:
        return {"zero_shot_accuracy": None, "accuracy": None, "per_class": None, "confusion": None}
    counts = module.confusion.compute().cpu()[: len(class_names), : len(class_names)]
    right, queries = counts.diag(), counts.sum(dim=1)
    per_class = {
        name: 100.0 * int(r) / int(q) for name, r, q in zip(class_names, right, queries, strict=True) if int(q) > 0
    }
    return {
        "zero_shot_accuracy": 100.0 * int(zero_shot.diag().sum()) / int(zero_shot.sum()),
        "accuracy": 100.0 * int(right.sum()) / int(queries.sum()),
        "per_class": per_class,
        "confusion": counts.tolist(),
    }
