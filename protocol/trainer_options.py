"""Options of the Trainer that would leave a run without training, or test a part of the images only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import DtrapError, check_at_least, check_number

# Shares or numbers of batches that a row must not depend on: value None or the share 1.0 means all of them.
_ALL_BATCHES = {"limit_test_batches": "queries would be tested", "limit_predict_batches": "images would be labeled"}


def check_trainer_options(arguments: Mapping[str, Any]) -> None:
    """Refuse options of the Trainer with which an episode trains nothing, or its accuracy is not that of its queries.

    Args:
        arguments: The Trainer's arguments from the config; an absent one has Lightning's default.

    Raises:
        DtrapError: Names the option, its value and what to give instead.
    """
    _check_length(arguments)
    for name in ("fast_dev_run", "overfit_batches", "barebones"):
        if arguments.get(name):
            raise DtrapError(
                f"trainer.{name} is {arguments[name]}, with which an episode is not the one of its row. Leave it out; "
                "--protocol.episodes 1 --trainer.max_epochs 1 is a quick try."
            )
    for name in ("limit_train_batches", "limit_val_batches"):
        if arguments.get(name) == 0:
            raise DtrapError(f"trainer.{name} is 0, which leaves out all batches. Leave it out.")
    for name, lost in _ALL_BATCHES.items():
        limit = arguments.get(name)
        if limit is not None and not (isinstance(limit, float) and limit == 1.0):
            raise DtrapError(f"trainer.{name} is {limit}, so that not all {lost}. Leave it out.")
    _check_clipping(arguments)
    if arguments.get("enable_checkpointing"):
        raise DtrapError(
            "--trainer.enable_checkpointing is true, but an episode writes no checkpoint of Lightning. Leave it out; "
            "--protocol.save_adapters true saves the result of every episode."
        )


def _check_length(arguments: Mapping[str, Any]) -> None:
    """Refuse a training of no step, without an end, or that the clock ends."""
    epochs, steps = arguments.get("max_epochs"), arguments.get("max_steps", -1)
    if epochs == 0 or steps == 0:
        name = "max_epochs" if epochs == 0 else "max_steps"
        raise DtrapError(
            f"trainer.{name} is 0, so that nothing would be trained; expected at least 1. The zero-shot accuracy is "
            "in every row."
        )
    if steps == -1 and (epochs is None or epochs < 0):
        raise DtrapError(
            f"--trainer.max_epochs is {epochs}, without an end; expected at least 1, or --trainer.max_steps."
        )
    if arguments.get("max_time") is not None:
        raise DtrapError(
            f"--trainer.max_time is {arguments['max_time']}, so that the clock decides the length of a training and no "
            "row could be repeated. Give --trainer.max_epochs instead."
        )
    least = arguments.get("min_epochs")
    if least is not None and epochs is not None and least > epochs:
        raise DtrapError(
            f"--trainer.min_epochs is {least}, but a training ends after {epochs}. Set --trainer.max_epochs {least}, "
            "or leave min_epochs out."
        )
    accumulated = arguments.get("accumulate_grad_batches", 1)
    check_at_least("trainer.accumulate_grad_batches", accumulated, 1)


def _check_clipping(arguments: Mapping[str, Any]) -> None:
    value, algorithm = arguments.get("gradient_clip_val"), arguments.get("gradient_clip_algorithm")
    if value is None and algorithm is not None:
        raise DtrapError(
            f"--trainer.gradient_clip_algorithm is '{algorithm}', but nothing is clipped without "
            "--trainer.gradient_clip_val. Give both, or none."
        )
    if value is not None:
        check_number("trainer.gradient_clip_val (null: no clipping)", value, above=0)
