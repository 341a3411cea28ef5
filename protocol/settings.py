"""What `--protocol.…` sets."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DtrapError


@dataclass
class ProtocolSettings:
    """The loop over episodes and what it leaves on disk.

    Args:
        episodes: Number of episodes; the authors' protocol has 800 for 1-shot and 400 for 5-shot. Where there
            are fewer tasks (a folder: one; all-way: one per seed), all of them.
        folder: Where the results go; null makes a folder under `runs` named after data set, way, shot, backbone,
            tuner, method and seed.
        overwrite: Delete the results that the folder holds and start anew, instead of going on.
        compare: One overlay, by name or path, or several as in "[methods/baseline.yaml, methods/paper.yaml]"; each
            runs as a further method on the very same episodes.
        method: Name of the method in rows, tables and file names; null names it after its losses.
        pictures: Number of episodes, from the first, that leave a picture of their support views and queries.
        save_adapters: Whether each episode's adapter is saved.
        checkpoint_every: Steps from one checkpoint to the next in the all-way protocol, whose tasks are long: a stopped
            run goes on from the last one. Episodes are short and start anew.
    """

    episodes: int = 400
    folder: str | None = None
    overwrite: bool = False
    compare: str | list[str] | None = None
    method: str | None = None
    pictures: int = 0
    save_adapters: bool = False
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise DtrapError(f"protocol.episodes is {self.episodes}; expected at least 1.")
        if self.checkpoint_every < 1:
            raise DtrapError(f"protocol.checkpoint_every is {self.checkpoint_every}; expected at least 1 step.")
        if self.pictures < 0:
            raise DtrapError(f"protocol.pictures is {self.pictures}; expected 0 or a number of episodes.")
        if self.method is not None and (not self.method.strip() or "/" in self.method):
            raise DtrapError(
                f"protocol.method is '{self.method}'; expected a name without '/': files are named after it."
            )

    @property
    def overlays(self) -> list[str]:
        """The overlays of `compare` as a list."""
        if self.compare is None:
            return []
        return [self.compare] if isinstance(self.compare, str) else list(self.compare)
