"""What a process does that follows the leader of a run on several devices."""

from __future__ import annotations

import gc
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from ..datamodules.few_shot import FewShotDataModule
from ..signals import STOP
from .checks import check_settings
from .episode import cheap_collection, without_expected_warnings
from .episode_run import EpisodeRun
from .explanation import explained_use
from .folder_identity import Method
from .processes import Processes, Task
from .progress import EpisodeProgress
from .rehearsal import Loaded
from .run_folder import Row, RunFolder
from .settings import ProtocolSettings


def follow(
    team: Processes,
    methods: Sequence[Method],
    data: FewShotDataModule,
    settings: ProtocolSettings,
    folder: RunFolder,
    loaded: Loaded | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Take part in the leader's episodes until it sends the result, and return its rows and summary.

    Args:
        team: The processes.
        methods: The methods of the run.
        data: The data module.
        settings: Which files the leader writes.
        folder: The leader's folder, whose checkpoints are read.
        loaded: Backbones and tuners that this process has loaded.

    Raises:
        KeyboardInterrupt: A signal has come.
    """
    with STOP.handled([signal.SIGINT]), without_expected_warnings(), _silence():
        with explained_use([data]):
            check_settings(methods, data, settings)
            data.setup()
        run = EpisodeRun(methods, data, settings, folder, loaded, leads=False)
        progress = EpisodeProgress(1, [method.name for method in methods], console=Console(quiet=True))
        with progress, cheap_collection():
            while isinstance(message := team.receive(), Task):
                STOP.check()
                data.set_episode(message.episode)
                run.run(methods[message.method].name, progress, message.rows, lambda row: None)
                gc.collect()
    return message


@contextmanager
def _silence() -> Iterator[None]:
    """Within it there are no warnings: the leader has the same ones."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
