"""One progress bar over a whole run; without a terminal, a line every 30 seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from ..console import say
from .claims import REPEAT, TASK, so_far
from .run_folder import Row
from .summary import mean_of, tested_images
from .time_estimate import TimeEstimate

SECONDS_BETWEEN_LINES = 30.0
ONE_OF_MANY = 0.1  # share of a training up to which its first step says nothing of the others


class EpisodeProgress:
    """Shows the episode, the running mean accuracy of the first method and the remaining time.

    Use as a context manager: `begin` an episode of a method, `advance` within it, `finish` it with its row.

    Args:
        episodes: Number of episodes of each method.
        methods: Names of the methods; the total is episodes * len(methods) method-episodes.
        rows: Result rows of an earlier start; they count as done, but not for the speed.
        unit: What an episode is called.
        console: Where to print; standard output by default.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(
        self,
        episodes: int,
        methods: Sequence[str],
        *,
        rows: Iterable[Row] = (),
        unit: str = "episode",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        earlier = [row for row in rows if row["method"] in methods and row["episode"] < episodes]
        self.episodes, self.unit = episodes, unit
        self.first_method = methods[0]
        named = len(methods) > 1 or methods[0].endswith("transductive")
        self.accuracy_title = methods[0] if named else "accuracy"
        self.total = episodes * len(methods)
        self.console, self.clock = console or Console(), clock
        self.finished = self._finished_earlier = len(earlier)
        self.earlier: float = self.finished
        self.tested: list[Row] = []
        self.diverged = 0
        self.accuracy = ""
        self._count(earlier)
        self.episode: int | None = None
        self.fraction, self.together = 0.0, 1
        self.testing = ""
        self.last_line = ""
        self.estimate: TimeEstimate | None = None
        self._start: tuple[float, float] | None = None  # when the first step was done, and its share
        columns = (BarColumn(), TextColumn("{task.description}", markup=False))
        self.bar = Progress(*columns, console=self.console, refresh_per_second=4, disable=not self.console.is_terminal)

    @classmethod
    def silent(cls) -> EpisodeProgress:
        """Return one that shows nothing."""
        return cls(1, [""], console=Console(quiet=True))

    def __enter__(self) -> EpisodeProgress:
        self.started = self.clock()
        self.task = self.bar.add_task(self.text(), total=self.total, completed=self.finished)
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.bar.disable:  # rich before 14.3 ends an invisible bar with an empty line
            self.bar.stop()
        elif self.last_line and self.text() != self.last_line:
            self._print_line()

    def begin(self, episode: int, together: int = 1, method: str | None = None) -> None:
        """Start an episode (numbered from 0) of one method, or several side by side from this one on."""
        self.episode, self.together = episode, together
        if self.estimate is not None and method is not None:
            self.estimate.begin(method, together)
        self._show()

    def resume(self, fraction: float) -> None:
        """Begin the training of an episode, of which this fraction was done in an earlier start."""
        self.earlier += fraction
        self.fraction += fraction
        if self.estimate is not None:
            self.estimate.resumed(fraction)

    def advance(self, fraction: float) -> None:
        """Add a fraction of the current method-episode."""
        if self._start is None and self.finished == self._finished_earlier and fraction < ONE_OF_MANY:
            self._start = self.clock(), fraction
        self.fraction, self.testing = min(self.fraction + fraction, self.together), ""
        self._say(None if self.estimate is None else self.estimate.advanced(fraction))
        self._show()

    def share(self, fraction: float) -> None:
        """Show the sum of the shares of all method-episodes that run at the same time."""
        self.fraction = fraction
        self._show()

    def test(self, done: int, batches: int) -> None:
        """Show the number of finished test batches; they do not count for the fraction."""
        self.testing = f"test batch {done}/{batches}" if done < batches else ""
        if self.estimate is not None:
            self.estimate.tested()
        self._show()

    def finish(self, row: Row) -> None:
        """End the current method-episode with its result row."""
        self.finished += 1
        self.together = max(self.together - 1, 1)
        self.fraction, self.testing = max(self.fraction - 1, 0.0), ""
        self._say(None if self.estimate is None else self.estimate.finished(row))
        self._count([row])
        self._show()

    def text(self) -> str:
        """Return a line such as `episode 37/400 · accuracy 51.2 ± 1.9 % (36 episodes, …) · 12 min left`.

        For several methods, or a transductive one, the name of the first stands for "accuracy".
        """
        parts = [self._place()] if self.episode is not None else []
        if self.accuracy:
            parts.append(f"{self.accuracy_title} {self.accuracy}")
        if self.diverged:
            parts.append(f"{self.diverged} diverged")
        if self.testing:
            parts.append(self.testing)
        remaining = self.remaining_seconds()
        if remaining is not None:
            parts.append(f"{duration(remaining)} left")
        return " · ".join(parts)

    def _place(self) -> str:
        """Return which task is being run; of a run with one, how much of it is done."""
        assert self.episode is not None
        more = f" and {self.together - 1} more" if self.together > 1 else ""
        if self.unit == TASK and self.episodes == 1:
            return "done" if self.finished == self.total else f"training {100 * self.done / self.total:.0f} %"
        of = " of " if self.unit == REPEAT else "/"
        return f"{self.unit} {self.episode + 1}{more}{of}{self.episodes}"

    @property
    def done(self) -> float:
        """Number of method-episodes that are done, with the share of the current one."""
        return self.finished + self.fraction

    def remaining_seconds(self) -> float | None:
        """Return the remaining time at the mean speed of this process; None before any progress and at the end.

        In the first episode it is the speed of the steps after the first one, which comes after tests and decoding.
        """
        here = self.finished - self.earlier + self.fraction
        left = self.total - self.finished - self.fraction
        if here <= 0 or left <= 0:
            return None
        if self._start is not None and self.finished == self._finished_earlier:
            began, before = self._start
            rate = (self.clock() - began) / (here - before) if here > before else None
            # Each task has tests, and encodes its images, before the end of its first step.
            return None if rate is None else rate * left + (began - self.started) * int(left)
        return (self.clock() - self.started) / here * left

    def _count(self, rows: Iterable[Row]) -> None:
        """Add rows of the first method to its running mean; the text is shown far more often than this changes."""
        for row in rows:
            if row.get("diverged"):
                self.diverged += 1
            elif row["method"] == self.first_method and row.get("accuracy") is not None:
                numbers = {key: row.get(key) for key in ("accuracy", "support_images", "resampled")}
                self.tested.append({**numbers, "test_images": tested_images(row)})
        interval = mean_of(self.tested)
        self.accuracy = "" if interval is None else so_far(interval, self.unit)

    def looked(self, worker: object, method: str, share: float, tasks: int) -> None:
        """Time the tasks of a worker, see `TimeEstimate.looked`."""
        self._say(None if self.estimate is None else self.estimate.looked(worker, method, share, tasks))

    def _say(self, line: str | None) -> None:
        if line is not None:
            say(self.console, line)

    def _show(self) -> None:
        if not self.bar.disable:
            self.bar.update(self.task, completed=self.done, description=self.text())
        elif not self.last_line or self.clock() - self.last_line_time >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def _print_line(self) -> None:
        self.last_line = self.text()
        self.last_line_time = self.clock()
        self.console.print(Text(self.last_line), soft_wrap=True)


def duration(seconds: float) -> str:
    """Format seconds as `45 s`, `12 min` or `1 h 20 min`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
