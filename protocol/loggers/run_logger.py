"""The logger of a run, from its methods, data and settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...datamodules.few_shot import FewShotDataModule
from ..folder_identity import Method
from ..run_folder import RunFolder
from ..settings import ProtocolSettings
from .facts import run_facts
from .protocol_logger import ProtocolLogger


def run_logger(
    configured: Any,
    folder: RunFolder,
    methods: Sequence[Method],
    data: FewShotDataModule,
    settings: ProtocolSettings,
    episodes: int,
    warn: Callable[[str], None],
) -> ProtocolLogger:
    """Return the logger of a run; see `ProtocolLogger`.

    Args:
        configured: The Trainer's `logger`.
        folder: The run folder.
        methods: The methods, the main one first.
        data: The data module, set up.
        settings: The settings of the run.
        episodes: Number of episodes.
        warn: Shows one line to the user.
    """
    main, shot = methods[0], [f"{data.shot}-shot"] if data.fixed_numbers else []
    return ProtocolLogger(
        configured,
        folder,
        {method.name: method.values for method in methods},
        warn,
        data.description,
        [data.title, *shot, main.backbone, main.tuner_name, *(method.name for method in methods)],
        facts=run_facts(methods, data, episodes),
        log_paths=settings.log_paths,
        unit=data.unit,
    )
