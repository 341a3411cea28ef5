"""Several processes that share the training and the tests of one run: Lightning's DDP in the all-way protocol.

Process 0 leads: it alone reads and writes the run folder, prints, and says which method on which seed is next. The
others follow: they build the same modules, take part in the training and the tests, and write nothing.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from torch import distributed

from ..errors import DtrapError
from ..signals import STOP

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

LAUNCHED_BY = "DTRAP_LAUNCHED_BY"  # number of the process that launched this one
FOLLOWS = "DTRAP_FOLLOWS"  # set in a process that is not to print, to its number
SECONDS_TO_BE_ENDED = 10.0

# Of an error that says that another process is gone.
LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")

ONE_DEVICE = {"devices": 1, "num_nodes": 1, "strategy": "auto"}

T = TypeVar("T")


class Task(NamedTuple):
    """What comes next in all processes.

    Attributes:
        episode: Number of the episode.
        method: Number of the method.
        rows: The rows of this episode so far.
    """

    episode: int
    method: int
    rows: list[dict[str, Any]]


def agreed(decide: Callable[[], T]) -> T:
    """Return what process 0 decides, in all processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return decide()
    found = [decide() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]


def asks_for_several(arguments: Mapping[str, Any]) -> bool:
    """Return whether a Trainer with these arguments may have several devices."""
    devices = arguments.get("devices", "auto")
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    return not one or arguments.get("num_nodes", 1) != 1


def follows() -> bool:
    """Return whether this process takes part in the run of another one, which prints for both."""
    return FOLLOWS in os.environ


def started_tasks() -> int:
    """Return how many processes torchrun or srun has started of this program; 1 without them."""
    torchrun = os.environ.get("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
    return int(torchrun or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def on_one_device(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Trainer's arguments for one device, where those of a run may be for several."""
    return {**arguments, **(ONE_DEVICE if asks_for_several(arguments) else {})}


class Processes:
    """The processes of a run, seen from one of them; a context manager that ends the others after an error.

    Args:
        trainer: A Trainer with the arguments of the run.

    Raises:
        DtrapError: Its strategy is not DDP in processes of their own.
    """

    def __init__(self, trainer: Trainer) -> None:
        from lightning.pytorch.strategies import DDPStrategy

        # Private: the launcher that starts a program again for each device. Others start a function.
        from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

        self.launcher: Any = trainer.strategy.launcher
        if not isinstance(trainer.strategy, DDPStrategy) or not isinstance(self.launcher, _SubprocessScriptLauncher):
            raise DtrapError(
                f"the trainer has {trainer.world_size} devices with the strategy {type(trainer.strategy).__name__}; "
                "expected --trainer.strategy ddp, or --trainer.devices 1."
            )
        self.strategy: Any = trainer.strategy
        self.rank, self.count = trainer.global_rank, trainer.world_size
        self._several_machines = trainer.num_nodes > 1
        self._connected = False

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def connect(self) -> None:
        """Wait for the other processes; the leader launches them if no launcher such as torchrun did."""
        if self._connected:
            return
        if not self.strategy.cluster_environment.creates_processes_externally:
            os.environ[LAUNCHED_BY] = str(os.getpid())
        elif os.environ.get(LAUNCHED_BY) == str(os.getppid()):
            _end_with_parent()
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # it would tell the number of the process
        try:
            self.launcher.launch(self.strategy.setup_environment)
        except (ValueError, RuntimeError) as error:
            raise DtrapError(
                f"{self.count} devices cannot be used together: {' '.join(str(error).split())[:300]}. Start as many "
                "processes as --trainer.devices times --trainer.num_nodes, or none and let Lightning start them."
            ) from error
        self._connected = True

    def send(self, message: Any) -> None:
        """Send a message from the leader to the others."""
        self.connect()
        distributed.broadcast_object_list([message], src=0)

    def receive(self) -> Any:
        """Wait for the leader's message."""
        self.connect()
        found = [None]
        distributed.broadcast_object_list(found, src=0)
        return found[0]

    def finish(self, result: tuple[Any, Any]) -> None:
        """Send the result to the processes that wait for it."""
        started = self.strategy.cluster_environment.creates_processes_externally or self._several_machines
        if self._connected or started:
            self.send(result)

    def __enter__(self) -> Processes:
        if not self.leads:
            os.environ[FOLLOWS] = str(self.rank)
            STOP.last_words = ""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            return
        lost = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)
        for process in self.launcher.procs:
            process.kill()
        if self.leads:
            if lost:
                raise DtrapError(
                    f"one of the {self.count} processes of this run has ended; what it printed says why. Rerun the "
                    "same command; it resumes at the last checkpoint."
                ) from error
        elif lost:
            raise SystemExit(2) from error  # the leader has said why
        elif isinstance(error, KeyboardInterrupt) and LAUNCHED_BY in os.environ:
            # Ctrl-C reaches all processes. Lightning kills the leader if another process ends with an error, but the
            # leader has yet to write the summary; it ends this process.
            time.sleep(SECONDS_TO_BE_ENDED)


def _end_with_parent() -> None:
    """End this process when the one that launched it is gone, in which case it would wait for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
