"""A pool of worker processes: items go to the workers that are free, and those of a worker that died to another."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from ...errors import DtrapError, first_line
from .cluster import CORES_OF_A_WORKER, Cluster, connect
from .desk import Desk, Report
from .options import Workers
from .worker import Job, Outcome, Worker

SECONDS_OF_A_LOOK = 0.5
SECONDS_UNTIL_NOTICE = 60.0  # without a worker, while the cluster has no free place for one
SECONDS_BETWEEN_COUNTS = 10.0
MOST_DEATHS = 3  # of workers that run the same item, or that start


@dataclass
class Task:
    """An item of a job, on its way.

    Attributes:
        key: Name of the job.
        job: Reference of the job in Ray's store.
        item: The item.
        fill: Returns the item with what it needs when a worker begins it.
        deaths: Number of workers that died while they ran it.
    """

    key: str
    job: Any
    item: Any
    fill: Callable[[Any], Any] | None = None
    deaths: int = 0


@dataclass(frozen=True)
class Finished:
    """What a worker has returned of an item; `fatal` if it ended every worker that ran it."""

    key: str
    item: Any
    outcome: Outcome
    fatal: bool = False


class WorkerPool:
    """Worker processes that are started once for all jobs; use as a context manager.

    Ray starts a worker that died again, where there is a place for it. Its item goes to the next free worker, so that
    a node that has left delays nothing.

    Args:
        wanted: Number of workers, or a cluster.
        gpu: Whether each worker has a GPU, if there is any.
        say: Prints one line.
    """

    def __init__(self, wanted: Workers, *, gpu: bool, say: Callable[[str], None]) -> None:
        self.wanted, self.gpu, self.say = wanted, gpu, say
        self.cluster: Cluster | None = None
        self.threads = 1
        self._workers: list[Any] = []
        self._running: dict[Any, tuple[int, Task | None]] = {}  # by the reference of the call
        self._free: list[int] = []
        self._waiting: list[Task] = []
        self._keys = count()
        self._forgotten: set[str] = set()
        self._starts = 0  # workers that died while they started, since the last one that did start
        self._counted = self._noticed = 0.0
        self._desk: Any = None
        self._share = 0.0
        self._resources: dict[str, float] = {}

    def __enter__(self) -> WorkerPool:
        started = time.monotonic()
        self.cluster = connect(self.wanted)
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'} each"
        device = "a share of a GPU" if 0 < self._share < 1 else "a GPU" if self._share else threads
        self.say(f"Workers: {len(self._workers)}, {device}; started in {time.monotonic() - started:.0f} s")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and, if it was started here, the cluster."""
        import ray

        if self.cluster is None:
            return
        cluster, self.cluster = self.cluster, None
        try:
            if not cluster.own:
                for actor in [*self._workers, self._desk]:
                    if actor is not None:
                        ray.kill(actor)
        finally:
            self._workers, self._running, self._desk = [], {}, None
            cluster.close()

    @property
    def count(self) -> int:
        """Number of workers."""
        return len(self._workers)

    # Workers

    def _start(self) -> None:
        import ray

        assert self.cluster is not None
        resources = self.cluster.resources()
        number = self._number(resources)
        cores, gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0)
        self.threads = _given_threads() or max(1, cores // number)
        # More workers than GPUs share them.
        self._share = 0.0 if not (self.gpu and gpus) else 1.0 if number <= gpus else 1 / -(-number // int(gpus))
        # On this machine as many as asked for find a place.
        self._resources = {"num_cpus": 0 if self.cluster.own else self.threads, "num_gpus": self._share}
        self._desk = ray.remote(Desk).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        for _ in range(number):
            self._add()
        self._noticed = self._counted = time.monotonic()

    def _number(self, resources: dict[str, float]) -> int:
        if self.wanted.count is not None:
            return self.wanted.count
        gpus = int(resources.get("GPU", 0)) if self.gpu else 0
        return gpus or max(1, int(resources.get("CPU", 1)) // CORES_OF_A_WORKER)

    def _add(self) -> None:
        import ray

        number = len(self._workers)
        kind = ray.remote(Worker).options(
            max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD", **self._resources
        )
        self._workers.append(kind.remote())
        self._prepare(number)

    def _prepare(self, number: int) -> None:
        # Not arguments of the constructor, which Ray may have lost when it starts a worker again.
        # With retries the call waits for a worker that Ray starts again; without any it would fail at once.
        ready = self._workers[number].ready.options(max_task_retries=MOST_DEATHS)
        call = ready.remote(number, self.threads, os.getcwd(), sys.path, self._desk)
        self._running[call] = number, None

    # Items

    def add(self, job: Job) -> Callable[..., None]:
        """Make a job known; return a function that adds an item of it."""
        import ray

        key, reference = f"job {next(self._keys)}", ray.put(job)

        def add(item: Any, fill: Callable[[Any], Any] | None = None) -> None:
            self._waiting.append(Task(key, reference, item, fill))

        add.key = key  # type: ignore[attr-defined]
        return add

    def forget(self, key: str) -> None:
        """Drop the items of a job that no worker has begun, and what becomes of the others."""
        self._waiting = [task for task in self._waiting if task.key != key]
        self._forgotten.add(key)

    @property
    def idle(self) -> int:
        """Number of workers that could begin an item now, beyond those that wait."""
        return max(0, len(self._free) - len(self._waiting))

    @property
    def busy(self) -> bool:
        """Whether items wait or run."""
        return bool(self._waiting or any(task for _, task in self._running.values()))

    def running(self) -> dict[int, Task]:
        """Return the item that each busy worker runs."""
        return {number: task for number, task in self._running.values() if task is not None}

    def next(self) -> Finished | None:
        """Wait for an item to end; return None after half a second without one.

        Raises:
            DtrapError: Workers do not start, or the cluster is gone.
            Exception: An error that nobody has foreseen, from the item.
        """
        import ray

        self._hand_out()
        try:
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=SECONDS_OF_A_LOOK)
        except (ConnectionError, ray.exceptions.RaySystemError) as error:
            raise _lost(error) from error
        for reference in done:
            number, task = self._running.pop(reference)
            return self._take(reference, number, task)
        self._look_around()
        return None

    def report(self) -> Report:
        """Return what the workers have reported since the last call; nothing where the desk is being restarted."""
        import ray

        try:
            return ray.get(self._desk.take.remote(), timeout=5)
        except ray.exceptions.RayError:
            return Report()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            number, task = self._free.pop(0), self._waiting.pop(0)
            item = task.item if task.fill is None else task.fill(task.item)
            call = self._workers[number].run.remote(task.key, [task.job], item)
            self._running[call] = number, task

    def _take(self, reference: Any, number: int, task: Task | None) -> Finished | None:
        import ray

        try:
            value = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if task is None:
                raise DtrapError(
                    f"a worker cannot start ({type(cause).__name__}: {first_line(cause)}). Every node needs the same "
                    "packages as this one: pip install 'dtrap[ray]'"
                ) from error
            self._free.append(number)
            if task.key in self._forgotten:
                return None
            raise cause from error
        except ray.exceptions.RayError as error:
            return self._died(number, task, error)
        self._free.append(number)
        if task is None:
            self._starts = 0
            return None
        return None if task.key in self._forgotten else Finished(task.key, task.item, value)

    def _died(self, number: int, task: Task | None, error: Exception) -> Finished | None:
        """Give the item of a worker that died to the next one; Ray starts the worker again."""
        self._prepare(number)
        if task is None:
            self._starts += 1
            if self._starts < len(self._workers):
                return None
            raise DtrapError(
                f"workers end while they start ({_short(error)}). Check the memory, and that every node has the same "
                "packages as this one, or leave --protocol.workers out."
            )
        if task.key in self._forgotten:
            return None
        task.deaths += 1
        if task.deaths < MOST_DEATHS:
            self.say(f"A worker died while it ran {task.item}; another one runs it again.")
            self._waiting.insert(0, task)
            return None
        message = (
            f"{task.item} has ended its worker process {task.deaths} times ({_short(error)}): too little memory, or a "
            "crash in a library. Try it in this process, without --protocol.workers, or with fewer workers."
        )
        return Finished(task.key, task.item, Outcome(error=message), fatal=True)

    def _look_around(self) -> None:
        """Add workers where nodes have joined; say so where there is no place for any."""
        assert self.cluster is not None
        now = time.monotonic()
        starting = [number for number, task in self._running.values() if task is None]
        if len(starting) < len(self._workers):
            self._noticed = now
        elif now - self._noticed > SECONDS_UNTIL_NOTICE:
            self._noticed = now + 86400
            needed = ", ".join(f"{value:g} {name[4:].upper()}" for name, value in self._resources.items() if value)
            self.say(f"Waiting for a node with {needed or 'free memory'} for a worker; `ray status` shows the cluster.")
        if self.wanted.count is None and not self.cluster.own and now - self._counted > SECONDS_BETWEEN_COUNTS:
            self._counted = now
            for _ in range(self._number(self.cluster.resources()) - len(self._workers)):
                self._add()


def uses_gpu(trainer: Mapping[str, Any]) -> bool:
    """Return whether a Trainer with these arguments takes a GPU where there is one."""
    return trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda")


def _given_threads() -> int | None:
    """Return the threads that OMP_NUM_THREADS asks for."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isascii() and text.isdigit() and int(text) else None


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:200]}".rstrip(".")


def _lost(error: Exception) -> DtrapError:
    return DtrapError(
        f"the Ray cluster is gone ({_short(error)}). Rows of finished episodes are kept. Start the cluster again and "
        "rerun the same command."
    )
