"""The commands of `dtrap` that have options, one file each; torch is imported only by commands that need it."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from ..errors import DtrapError, visible
from ..files import printable
from ..signals import STOP
from .own_modules import begin

COMMANDS = {
    "fit": "train and test on every episode; print mean and 95% interval",
    "test": "test saved adapters again",
    "predict": "classify images with a saved adapter",
    "export": "write the tuned model for open_clip, transformers, peft or onnxruntime",
    "data": "check or show the data sets under a folder, or download one",
    "study": "run many data sets, settings and methods from one small file",
    "report": "show the results of several runs or a study in tables and on a page",
    "cite": "print BibTeX of what runs used",
    "dashboard": "build a workspace of W&B for the runs of a project",
    "configs": "list the shipped configs, or print one",
    "doctor": "look at the installation, the device and the weights on this machine",
    "completion": "print a script that completes commands, options and configs in a shell",
}
LONG_HELP = ("fit", "test", "predict", "export")  # too many options for one page
LIGHT = ("data", "study", "report", "dashboard", "completion")  # they need no torch, or import it themselves


def run(command: str, arguments: list[str]) -> int:
    """Run a command with the words after its name and return the exit status.

    Raises:
        DtrapError: The user made a mistake.
    """
    for argument in arguments:
        if command not in LIGHT and printable(argument) != argument:
            raise DtrapError(
                f"'{visible(argument)}' is not UTF-8, as configs and results are. Rename it, or make a link and give "
                "that: ln -s FOLDER photos"
            )
    begin()
    if logging.lastResort is not None:  # the handler of warnings where the program sets up none
        logging.lastResort.setFormatter(_Printable())
    with importing():
        from ..console import SafeConsole, say_on_terminal  # here, because the texts of `dtrap --help` need no rich

        console = SafeConsole(highlight=False)
        if command not in LIGHT:
            say_on_terminal(console, "Loading PyTorch and Lightning …")
            prepare_torch()
        # Each command is a function in the module of the same name.
        function = getattr(import_module(f".{command}", __name__), command)
    with STOP.raising():
        return function(arguments, console)


@contextmanager
def importing() -> Iterator[None]:
    """Import without searching for garbage: the 5,000 modules are none, and looking at them takes a seventh of it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def prepare_torch() -> None:
    """Import Lightning with settings that a command needs."""
    # Waiting threads of torch sleep instead of spinning: measured 2.5 times faster for small models on a CPU that is
    # shared with other processes. Only effective before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import lightning.pytorch  # noqa: F401  (sets its own log level when it is imported)

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.formatwarning = lambda message, *where, **more: f"Warning: {visible(str(message), keep=chr(10))}\n"
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class _Printable(logging.Formatter):
    """Shows control characters of a message escaped: it may hold the name of somebody's file."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return visible(super().format(record), keep="\n")
