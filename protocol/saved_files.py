"""Which files of the episodes a run has saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .run_folder import Row


def tell_saved(folder: Path, rows: Sequence[Row], say: Callable[[str], None], *, complete: bool) -> None:
    """Say where the files of the episodes are, and of how many there are none.

    Args:
        folder: Their folder.
        rows: The rows that should have a file; a diverged episode and a repeated row have none.
        say: Prints one line.
        complete: Whether the run is complete; after an interrupt it resumes, and starting over is no remedy.
    """
    rows = [row for row in rows if not row.get("diverged") and not row.get("same_as")]
    names = [f"episode_{row['episode']:04d}_{row['method']}.safetensors" for row in rows]
    without = [name for name in names if not (folder / name).exists()]
    if len(without) < len(rows):
        say(f"{folder.name.capitalize()}: {folder}")
    if without and complete:
        which = "this run" if len(without) == len(rows) else f"{len(without)} of {len(rows)} episodes"
        say(f"Warning: {which} saved no {folder.name}; use --protocol.overwrite true to run it again and save them.")
