"""Which episodes a logger has, noted in the run folder: a W&B run that goes on offline cannot know it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ...files import write_atomically
from ...parsing import read_json
from ..run_folder import RESUMES


class Logged:
    """The episodes that were logged, by where they went, such as "wandb 3f2a" or "tensorboard tensorboard".

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._episodes: dict[str, list[int]] = {}
        try:
            found = read_json(self.path)
            self._episodes = {str(place): [int(number) for number in numbers] for place, numbers in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # none, or not written by dtrap
            self._episodes = {}

    def episodes(self, place: str) -> set[int]:
        """Return the episodes that a place has."""
        return set(self._episodes.get(place, ()))

    def places(self, kind: str) -> list[str]:
        """Return the names of the places of a kind, the last one that was used last."""
        return [place.partition(" ")[2] for place in self._episodes if place.startswith(f"{kind} ")]

    def add(self, place: str, episodes: Iterable[int] = ()) -> None:
        """Note that a place has episodes."""
        known = self._episodes.pop(place, [])  # the last one that was used comes last
        self._episodes[place] = sorted({*known, *episodes})
        write_atomically(self.path, json.dumps(self._episodes) + "\n", RESUMES)

    def forget(self, place: str) -> None:
        """Forget what a place had: it is empty."""
        self._episodes.pop(place, None)
