"""One method on one episode: zero-shot test, fit, test."""

from __future__ import annotations

import copy
import gc
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..callbacks import StageSwitch
from ..callbacks.feature_collector import FeatureCollector
from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.finite import DivergedError
from ..metrics.features import Features
from .checkpoint import SeededSteps, StepCheckpoint
from .explanation import explained_creation, explained_use
from .interrupts import Interrupts, keyboard_interrupts, leave_signals_alone
from .measures import NOTHING_TESTED, measure, measure_zero_shot
from .precision import tf32_allowed
from .processes import agreed, asks_for_several
from .progress import EpisodeProgress
from .recorder import EpisodeRecorder as EpisodeRecorder
from .references import give_rows
from .run_folder import Row
from .trainer_options import check_trainer_options

# What rows say of zero-shot tests and, where they are collected, features; by class names and query images.
ZeroShots = dict[tuple[tuple[str, ...], tuple[int, ...]], tuple[Row, Features | None]]

# Lightning warnings that do not apply here.
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
    """Hide Lightning warnings that do not apply here, and what each of its Trainers says of the device."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="|".join(_EXPECTED_WARNINGS))
            yield
    finally:
        logger.setLevel(level)


def episode_trainer(
    arguments: dict[str, Any],
    callbacks: list[Callback],
    *,
    progress: bool = False,
    several: bool = False,
    validates: bool = True,
) -> Trainer:
    """Return a Trainer that is bound to one device and writes neither logs nor checkpoints itself.

    Args:
        arguments: The Trainer's arguments from the config.
        callbacks: Callbacks in addition to those of the config.
        progress: Whether Lightning shows its progress bar.
        several: Whether the arguments may ask for several devices.
        validates: Whether anything reads what a validation says; if not, there is none.

    Raises:
        DtrapError: Lightning refuses an argument, or with it an episode would run on several devices, train nothing, or
            test a part of the queries.
    """
    check_trainer_options(arguments)
    # A launcher's variables (torchrun, SLURM) must not turn an episode into a distributed run.
    environment = [] if several and asks_for_several(arguments) else [LightningEnvironment()]
    settings = {
        **arguments,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": progress,
        **({} if validates else {"limit_val_batches": 0}),
        "enable_model_summary": False,
        "plugins": [*_as_list(arguments.get("plugins")), *environment] or None,
        # Copies: what a callback such as EarlyStopping has seen of one episode must not reach the next.
        "callbacks": [Interrupts(), *_copies(_as_list(arguments.get("callbacks"))), *callbacks],
    }
    try:
        trainer = Trainer(**settings)
    except Exception as error:
        shown = ("accelerator", "devices", "precision")
        given = ", ".join(f"{name} {arguments[name]!r}" for name in shown if name in arguments)
        raise trainer_error(error, f" ({given})") from error
    leave_signals_alone(trainer)
    if not several and (trainer.num_devices != 1 or trainer.num_nodes != 1):
        raise DtrapError(
            f"--trainer.devices is {arguments.get('devices')!r}, which is {trainer.num_devices} devices; an episode "
            "runs on one. Give --trainer.devices 1 or a list with one device, and --protocol.workers "
            f"{trainer.num_devices} to run as many episodes at a time."
        )
    return trainer


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


@contextmanager
def cheap_collection() -> Iterator[None]:
    """Make `gc.collect` cheap in this context: objects that exist before it are not looked at.

    Each Trainer is garbage in cycles. Python collects such garbage after many episodes only, so that memory grows in
    between and its free parts are scattered.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def parts_of(module: FewShotClassifier) -> list[object]:
    """Return the module and its parts that a user may have written."""
    return [module, module.backbone, module.tuner, module.objective]


def callbacks_of(trainer: Any) -> list[Callback]:
    """Return the callbacks of a Trainer, an attribute that its types do not have."""
    return trainer.callbacks


def _copies(callbacks: list[Callback]) -> list[Callback]:
    """Return copies. Of several monitors the last counts: a config and an overlay may each add one."""
    monitors: dict[type, Callback] = {type(each): each for each in callbacks if isinstance(each, FeatureCollector)}
    callbacks = [callback for callback in callbacks if monitors.get(type(callback), callback) is callback]
    with explained_creation("trainer.callbacks", None):
        return copy.deepcopy(callbacks)


def trainer_error(error: Exception, given: str = "") -> DtrapError:
    """Return the error for an option of the Trainer that Lightning refuses."""
    reason = " ".join(str(error).split())[:500].rstrip(".!")
    options = "--trainer.accelerator, --trainer.devices, --trainer.precision or another"
    return DtrapError(f"trainer{given}: {reason}. Change that option of the trainer: {options}.")


def run_episode(
    module: FewShotClassifier,
    data: FewShotDataModule,
    arguments: dict[str, Any],
    stage_switch: StageSwitch,
    progress: EpisodeProgress,
    checkpoint: StepCheckpoint | None = None,
    zero_shots: ZeroShots | None = None,
    more: Sequence[Callback] = (),
    rows: Sequence[Row] = (),
) -> Row:
    """Test zero-shot, fit and test a module on the data module's current episode.

    Args:
        module: Backbone, tuner and objective.
        data: The data module, set to the episode.
        arguments: The Trainer's arguments from the config.
        stage_switch: The stage of SVL and RA.
        progress: Shows every step and test batch.
        checkpoint: Where the task is resumed, and where its checkpoints are written; None for neither.
        zero_shots: Results of earlier zero-shot tests of this method, since a test split returns with every seed.
        more: Further callbacks of the run.
        rows: The rows of the run so far; a callback may need that of another method of this episode.

    Returns:
        The row of this episode without its method. If the training diverged, "diverged" says from which step on and
        what to change; then there is no accuracy.

    Raises:
        KeyboardInterrupt: The run was interrupted.
        DtrapError: The data or the settings do not allow the episode.
    """
    recorder = EpisodeRecorder(progress)
    with keyboard_interrupts():
        callbacks: list[Callback] = [stage_switch, recorder, *more]
        resumed: dict[str, Any] = {}
        if checkpoint is not None:
            callbacks += [SeededSteps(data.episode_seed("step")), checkpoint]
            found = agreed(lambda: checkpoint.found)
            resumed = {"ckpt_path": checkpoint.path, "weights_only": True} if found else {}
        validates = data.streams or not data.validates or module.tuner.chooses or bool(arguments.get("callbacks"))
        trainer = episode_trainer(arguments, callbacks, several=data.streams, validates=validates)
        give_rows(callbacks_of(trainer), [row for row in rows if row["episode"] == data.episode])
        try:
            parts = [*callbacks_of(trainer), *parts_of(module), data]
            with explained_use(parts), _logging_for(parts, module), tf32_allowed(trainer) as tf32:
                zero_shot = zero_shot_measures(trainer, module, data, zero_shots) if data.has_query else None
                torch.manual_seed(data.episode_seed("training"))
                diverged = _fit_and_test(trainer, module, data, resumed)
        except MisconfigurationException as error:
            raise trainer_error(error) from error
    return row_of(trainer, module, data, recorder, zero_shot, diverged, tf32=tf32)


def row_of(
    trainer: Trainer,
    module: FewShotClassifier,
    data: FewShotDataModule,
    recorder: EpisodeRecorder,
    zero_shot: Row | None,
    diverged: str | None,
    fitted: Trainer | None = None,
    *,
    tf32: bool,
) -> Row:
    """Return the row of an episode that was trained and tested; see `ResultRows`.

    Args:
        trainer: Has the callbacks that add to the row.
        module: The module after the test.
        data: The data module, set to the episode.
        recorder: Losses and time.
        zero_shot: Measures of the zero-shot test; None without queries.
        diverged: What is not finite, or None.
        fitted: The Trainer of the fit, if it is another one.
        tf32: Whether TF32 was allowed.
    """
    row: Row = {"episode": data.episode, "seed": data.seed, "classes": list(data.class_names)}
    row["support_images"] = len(data.support_ids)
    row["precision"] = str(trainer.precision)
    if tf32:
        row["tf32"] = True
    if module.tuner.class_weights is not None:
        row["class_weights"] = dict(zip(data.class_names, module.tuner.class_weights.tolist(), strict=True))
    if getattr(data, "balanced_batches", False):
        row["balanced_batches"] = True
    if module.loss_scale.skipped:
        row["skipped_updates"] = module.loss_scale.skipped
    row |= _tested(zero_shot, None if diverged else module, data.class_names)
    if data.resampled and row["test_images"]:
        row["resampled"] = row["test_images"] / row["support_images"]
    if zero_shot is not None and data.copied_queries:
        row["copied_test_images"] = data.copied_queries
    row |= {"losses": recorder.losses, "terms": recorder.terms, "seconds": round(recorder.seconds, 3)}
    for callback in callbacks_of(trainer):
        for key, value in getattr(callback, "row_values", dict)().items():  # such as AlignmentMonitor's
            row[key] = {**row[key], **value} if isinstance(row.get(key), Mapping) else value
    if diverged:
        return row | {"diverged": diverged}
    ended = stopped_early(fitted or trainer) if module.tuner.trained_parameters() else None
    return row | ({"stopped_early": ended} if ended else {})


@contextmanager
def _logging_for(parts: Sequence[object], module: FewShotClassifier) -> Iterator[None]:
    """Let the steps of an episode log their terms only if a part that is not dtrap's may read them: nobody else can."""
    module.logs_steps = any(not type(part).__module__.startswith("dtrap.") for part in parts)
    try:
        yield
    finally:
        module.logs_steps = True


def stopped_early(trainer: Trainer) -> str | None:
    """Return after how many epochs a callback has ended a fit before its length; None for a whole fit."""
    done, epochs = trainer.current_epoch, trainer.max_epochs
    if epochs is None or not 0 <= done < epochs or 0 <= trainer.max_steps <= trainer.global_step:
        return None
    return f"after {done} of {epochs} epochs"


def _fit_and_test(
    trainer: Trainer, module: FewShotClassifier, data: FewShotDataModule, resumed: dict[str, Any]
) -> str | None:
    """Fit and test; return what is not finite if the training diverged, so that the test has no meaning."""
    try:
        trainer.fit(module, datamodule=data, **resumed)
        if data.has_query:
            trainer.test(module, datamodule=data, verbose=False)
    except DivergedError as error:
        return f"{error.reason}; {error.remedy}"
    return None


def zero_shot_measures(
    trainer: Trainer, module: FewShotClassifier, data: FewShotDataModule, known: ZeroShots | None = None
) -> Row:
    """Return the measures of the backbone without the tuner, taken from `known` for the same classes and images."""
    kept: ZeroShots = {} if known is None else known
    # Only where results are kept: `query_ids` may decode the images of an episode.
    images = ((), ()) if known is None else (tuple(data.class_names), tuple(data.query_ids))
    collectors = [callback for callback in callbacks_of(trainer) if isinstance(callback, FeatureCollector)]
    if images not in kept:
        with module.zero_shot():
            trainer.test(module, datamodule=data, verbose=False)
        seen = (collector.zero_shot_features for collector in collectors)
        kept[images] = measure_zero_shot(module), next(seen, None)
    measures, features = kept[images]
    for collector in collectors:
        collector.zero_shot_features = features
    return measures


def _tested(zero_shot: Row | None, module: FewShotClassifier | None, class_names: list[str]) -> Row:
    """Return what a row says of the test images, without the module's own if it diverged; see `ResultRows`."""
    if zero_shot is None:
        return NOTHING_TESTED
    tested = {} if module is None else measure(module, class_names)
    return NOTHING_TESTED | tested | zero_shot
