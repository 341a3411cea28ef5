"""A callback that kills its process, for the tests of worker processes."""

import os
import signal
import time
from pathlib import Path

from lightning.pytorch import Callback


class Dies(Callback):
    """Kills its process at a step of an episode, a number of times that files count.

    Args:
        folder: Where the files are; `start0` and so on say at which step a training began.
        episode: Number of the episode.
        times: Number of deaths.
        step: Number of the step.
    """

    def __init__(self, folder: str, episode: int, times: int, step: int = 0) -> None:
        self.folder, self.episode, self.times, self.step = Path(folder), episode, times, step

    def _next(self, name):
        return self.folder / f"{name}{len(list(self.folder.glob(f'{name}*')))}"

    def on_train_start(self, trainer, pl_module) -> None:
        self._next("start").write_text(str(trainer.global_step))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        death = self._next("death")
        if (trainer.datamodule.episode, trainer.global_step) != (self.episode, self.step):
            return
        if int(death.name.removeprefix("death")) < self.times:
            death.touch()
            time.sleep(0.5 if self.step else 0)  # what was reported before gets through
            os.kill(os.getpid(), signal.SIGKILL)
