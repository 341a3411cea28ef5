"""Where loggers of a config write by default: into the run folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

HERE = (None, ".", "./")  # how a config says "the default place"; the first argument of some loggers is required
MLRUNS = "mlruns"


def place_loggers(trainer: Any, folder: Path) -> None:
    """Let the loggers of a parsed config write into the run folder, in place, unless they have a place of their own.

    Args:
        trainer: The parsed section `trainer`.
        folder: The run folder.
    """
    given = trainer.get("logger")
    for logger in given if isinstance(given, list) else [given]:
        kind = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        options = getattr(logger, "init_args", None)
        if options is None:
            continue
        if kind in ("CSVLogger", "TensorBoardLogger") and options.get("save_dir") in HERE:
            options["save_dir"] = str(folder)
        unplaced = options.get("save_dir") in (*HERE, MLRUNS, f"./{MLRUNS}")
        if kind == "MLFlowLogger" and options.get("tracking_uri") is None and unplaced:
            options["save_dir"] = str(folder.absolute() / MLRUNS)
            # Since 3.13 MLflow refuses folders, its only store without a database, unless it is told otherwise.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
