"""The commands of `dtrap` that have options, one file each. Torch is imported only where a command needs it."""

from __future__ import annotations

import logging
import os
import warnings

from rich.console import Console


def run(command: str, arguments: list[str]) -> int:
    """Run a command with the words after its name; returns the exit status.

    Raises:
        DtrapError: A mistake of the user's.
    """
    console = Console(highlight=False)
    if command == "data":
        from .data import data

        return data(arguments, console)
    if command == "report":
        from .report import report

        return report(arguments, console)
    # Waiting threads of torch give way instead of spinning: on a machine shared with others, small models on the CPU
    # were measured to be 2.5 times faster. Has to be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import lightning.pytorch  # noqa: F401  (sets its own log level when it is imported)

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.formatwarning = lambda message, *where, **more: f"Warning: {message}\n"
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if command == "fit":
        from .fit import fit

        return fit(arguments, console)
    if command == "test":
        from .test import test

        return test(arguments, console)
    if command == "export":
        from .export import export

        return export(arguments, console)
    from .predict import predict

    return predict(arguments, console)
