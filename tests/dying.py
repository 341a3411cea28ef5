"""A callback that kills its process, for the tests of worker processes."""

import os
import signal
from pathlib import Path

from lightning.pytorch import Callback


class Dies(Callback):
    """Kills its process at the start of the training of an episode, a number of times that files count.

    Args:
        folder: Where the files are.
        episode: Number of the episode.
        times: Number of deaths.
    """

    def __init__(self, folder: str, episode: int, times: int) -> None:
        self.folder, self.episode, self.times = folder, episode, times

    def on_train_start(self, trainer, pl_module) -> None:
        deaths = len(list(Path(self.folder).glob("death*")))
        if trainer.datamodule.episode == self.episode and deaths < self.times:
            (Path(self.folder) / f"death{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
