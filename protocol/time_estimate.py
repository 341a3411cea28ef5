"""How long a run takes, extrapolated from the first steps of each method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .claims import TASK, counted
from .run_folder import Row

if TYPE_CHECKING:
    from .episode_run import EpisodeRun

WORTH_SAYING = 60.0  # seconds of a run
LONG = 600.0  # seconds from which a quicker way is named
ENOUGH_SECONDS, ENOUGH_STEPS = 3.0, 20  # of steps after the first one
LONG_LOOK = 20.0  # seconds for which a worker is watched


@dataclass
class _Method:
    """What is known of one method.

    Attributes:
        tasks: Number of its tasks that are to be run.
        trains_images: Whether it trains the image tower, so that its test takes as long as the one before.
        may_stop: Whether a training may end early.
        done: Number of its tasks that are finished.
        seconds: Of one task, as extrapolated or measured; None before.
        steps: Steps of a task; None if unknown.
        step: Seconds of a step; None if unknown.
    """

    tasks: int
    trains_images: bool = True
    may_stop: bool = False
    done: int = 0
    seconds: float | None = None
    steps: int | None = None
    step: float | None = None


@dataclass
class _Watch:
    """The times of the task that is being run, or of several side by side."""

    method: str
    began: float
    together: int
    tests: list[float] = field(default_factory=list)
    marks: list[float] = field(default_factory=list)  # ends of steps
    calls: int = 0
    resumed: float = 0.0


class TimeEstimate:
    """Extrapolates the times of tests and first steps to all tasks of a run; it changes nothing of the run.

    Args:
        methods: The number of tasks of each method that are to be run, or what else is known of it.
        unit: What a task is called.
        workers: Number of tasks that are run at the same time, in other processes.
        clock: Seconds of a clock that never goes back.
        hint: What to add for a long run.
    """

    def __init__(
        self,
        methods: Mapping[str, _Method | int],
        unit: str = "episode",
        *,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
        hint: str = "",
    ) -> None:
        found = {name: each if isinstance(each, _Method) else _Method(each) for name, each in methods.items()}
        self.methods = {name: each for name, each in found.items() if each.tasks}
        self.unit, self.workers, self.clock, self.hint = unit, workers, clock, hint
        self._watch: _Watch | None = None
        self._began: float | None = None
        self._said: set[str] = set()
        self._skipped = 0.0  # seconds that an earlier start has done
        self._looks: dict[Any, tuple[float, float]] = {}

    @classmethod
    def of(
        cls, run: EpisodeRun, missing: Mapping[str, Collection[int]], known: Collection[tuple[str, int]], unit: str
    ) -> TimeEstimate:
        """Return the estimate of a run.

        Args:
            run: The run.
            missing: The tasks without a row, by method.
            known: Methods and tasks whose rows are copied.
            unit: What a task is called.
        """
        methods = {}
        for name, module in run.modules.items():
            tasks = sum((name, task) not in known for task in missing[name])
            callbacks = run.arguments[name].get("callbacks") or []
            names = [type(each).__name__ for each in (callbacks if isinstance(callbacks, list) else [callbacks])]
            may_stop = any("Stop" in each for each in names) or bool(run.arguments[name].get("max_time"))
            methods[name] = _Method(tasks, "vision" in module.tuner.trains, may_stop)
        own = unit == TASK and any(each.trains_images for each in methods.values())
        hint = "For a first result sooner: --config quick.yaml, in another --protocol.folder." if own else ""
        return cls(methods, unit, hint=hint)

    # What the run reports

    def begin(self, method: str, together: int = 1) -> None:
        """Start a task of a method, or several side by side."""
        now = self.clock()
        self._began = now if self._began is None else self._began
        known = method not in self.methods or self.methods[method].seconds is not None
        self._watch = None if known else _Watch(method, now, together)

    def resumed(self, share: float) -> None:
        """The training begins, of which an earlier start has done this share."""
        if self._watch is not None:
            self._watch.resumed = share

    def tested(self) -> None:
        """A test batch is done."""
        if self._watch is not None:
            self._watch.tests.append(self.clock())

    def advanced(self, share: float) -> str | None:
        """A step is done, which is this share of a training; return what to say."""
        watch = self._watch
        if watch is None or share <= 0:
            return None
        watch.calls += 1
        if watch.calls % watch.together:  # each of the tasks side by side reports the common step
            return None
        watch.marks.append(self.clock())
        # The first step does not count: it may encode the images of a frozen tower, or wait for the device.
        number, seconds = len(watch.marks) - 1, watch.marks[-1] - watch.marks[0]
        if not number or (seconds < ENOUGH_SECONDS and number < ENOUGH_STEPS):
            return None
        method, step, steps = self.methods[watch.method], seconds / number, round(1 / share)
        self._watch = None
        method.steps, method.step = steps, step
        before_second_step = watch.marks[0] - watch.began
        test = self._test_seconds(watch) if method.trains_images else 0.0
        self._skipped += watch.resumed * steps * step
        method.seconds = (before_second_step + (steps - 1) * step + test) / watch.together
        return self._say(watch.method)

    def _test_seconds(self, watch: _Watch) -> float:
        """Return how long a test takes, from the one before the training."""
        if not watch.tests:
            return 0.0
        if len(watch.tests) > 1:
            return (watch.tests[-1] - watch.tests[0]) / (len(watch.tests) - 1) * len(watch.tests)
        return watch.tests[0] - watch.began

    def looked(self, worker: Any, method: str, share: float, tasks: int) -> str | None:
        """A worker has done this share of its tasks; return what to say.

        Args:
            worker: Names the worker and what it runs.
            method: Its method.
            share: What it has done, from 0 to `tasks`.
            tasks: Number of its tasks.
        """
        now = self.clock()
        self._began = now if self._began is None else self._began
        if method not in self.methods or not 0 < share < tasks or self.methods[method].seconds is not None:
            return None
        since, before = self._looks.setdefault(worker, (now, share))
        if now - since < LONG_LOOK or share <= before:
            return None
        self.methods[method].seconds = (now - since) / (share - before)
        return self._say(method)

    def finished(self, row: Row) -> str | None:
        """A task has its row; return what to say."""
        method, seconds = self.methods.get(row["method"]), row.get("seconds")
        if method is None:
            return None
        method.done += 1
        if method.seconds is None and seconds and not row.get("diverged"):
            method.seconds = float(seconds)
            return self._say(row["method"])
        return None

    # What is said

    def seconds(self) -> float:
        """Return how long the tasks of the methods take that are timed, with those that are done."""
        timed = [method for method in self.methods.values() if method.seconds is not None]
        every = sum(method.tasks * (method.seconds or 0) for method in timed)
        longest = max((method.seconds or 0 for method in timed), default=0.0)
        return max(every / self.workers, longest) - self._skipped

    def _say(self, name: str) -> str | None:
        """Return a line where a run is worth it: for the first method that is timed, and for all."""
        self._said.add(name)
        rest = [name for name, method in self.methods.items() if method.seconds is None]
        if rest and len(self._said) > 1:
            return None
        seconds = self.seconds()
        if seconds < WORTH_SAYING:
            return None
        few = [name for name in self.methods if name not in rest]
        most = "at most " if any(self.methods[name].may_stop for name in few) else ""
        what = f"{most}about {about(seconds)}"
        text = f"This takes {what}" if not rest else f"'{few[0]}' takes {what}"
        text += self._how(few)
        if rest:
            verb = "is timed when it starts" if len(rest) == 1 else "are timed when they start"
            text += f"; {', '.join(map(repr, rest))} {verb}"
        return f"{text}. {self.hint}".rstrip() if seconds >= LONG else f"{text}."

    def _how(self, names: list[str]) -> str:
        """Return what the time is made of, where it is one method's steps."""
        method = self.methods[names[0]]
        if len(names) > 1 or method.step is None or method.steps is None:
            return ""
        steps = f"{counted(method.steps, 'step')} of {short(method.step)}"
        return f": {steps}" if method.tasks == 1 else f": {counted(method.tasks, self.unit)}, each {steps}"


def about(seconds: float) -> str:
    """Return a time as one says it: `a minute`, `14 minutes`, `2 hours 10 minutes`, `3 days`."""
    minutes = seconds / 60
    if minutes < 1.5:
        return "a minute"
    if minutes < 59.5:
        return f"{minutes:.0f} minutes"
    if minutes < 5 * 60:
        hours, rest = divmod(round(minutes / 5) * 5, 60)
        return counted(hours, "hour") + (f" {rest} minutes" if rest else "")
    return f"{minutes / 60:.0f} hours" if minutes < 48 * 60 else f"{math.ceil(minutes / 60 / 24):,} days"


def short(seconds: float) -> str:
    """Return the time of a step: `8 ms`, `0.65 s`, `42 s`."""
    if seconds < 0.095:
        return f"{1000 * seconds:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
