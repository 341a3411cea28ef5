"""What workers report while an item runs: its progress and its checkpoints. It lives in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """What has happened since the last look.

    Attributes:
        shares: Share of its current item that each worker has done, by its number.
        checkpoints: Content of the newest checkpoint by its name in the run folder.
    """

    shares: dict[int, float] = field(default_factory=dict)
    checkpoints: dict[str, bytes] = field(default_factory=dict)


class Desk:
    """Takes reports of workers until the driver collects them; an actor of Ray."""

    def __init__(self) -> None:
        self._report = Report()

    def progress(self, worker: int, share: float) -> None:
        """Take the share of its item that a worker has done."""
        self._report.shares[worker] = share

    def checkpoint(self, name: str, content: bytes) -> None:
        """Take a checkpoint of a task, which replaces an earlier one."""
        self._report.checkpoints[name] = content

    def take(self) -> Report:
        """Return what has been reported since the last call."""
        report, self._report = self._report, Report()
        return report
