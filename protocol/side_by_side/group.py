"""One method on several episodes: zero-shot tests, one fit of all together, tests."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ...callbacks import StageSwitch
from ...datamodules.batches import Batch, Batches
from ...datamodules.few_shot import FewShotDataModule
from ...lightning_modules import FewShotClassifier
from ...lightning_modules.finite import DivergedError
from ...lightning_modules.side_by_side import SideBySide
from ..episode import callbacks_of, episode_trainer, parts_of, row_of, zero_shot_measures
from ..explanation import explained_use
from ..interrupts import keyboard_interrupts
from ..precision import tf32_allowed
from ..progress import EpisodeProgress
from ..recorder import EpisodeRecorder
from ..run_folder import Row


@dataclass(eq=False)
class Episode:
    """One of the episodes of a group.

    Attributes:
        data: A copy of the data module, set to the episode.
        module: The member of the method's module.
        trainer: Runs its tests; its callbacks see the fit, too.
        recorder: Its losses and time.
        more: Callbacks of the run.
        zero_shot: Measures of the zero-shot test; None without queries.
    """

    data: FewShotDataModule
    module: FewShotClassifier
    trainer: Trainer
    recorder: EpisodeRecorder
    more: Sequence[Callback]
    zero_shot: Row | None = None


class OfEachEpisode(Callback):
    """Shows the common fit to the callbacks of every episode as if it were its own."""

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self.episodes = episodes

    def _call(self, hook: str, trainer: Trainer, pl_module: Any, *arguments: Any, outputs: bool = False) -> None:
        for number, episode in enumerate(self.episodes):
            if number in pl_module.lost:
                continue
            seen = (pl_module.terms[number], *arguments) if outputs else arguments
            with pl_module.at_work(number):
                for callback in callbacks_of(episode.trainer):
                    if not isinstance(callback, StageSwitch):
                        getattr(callback, hook)(trainer, episode.module, *seen)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forward; the members have no task yet."""
        for episode in self.episodes:
            for callback in callbacks_of(episode.trainer):
                if not isinstance(callback, StageSwitch):
                    callback.setup(trainer, episode.module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forward."""
        self._call("on_train_start", trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Forward."""
        self._call("on_train_batch_start", trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forward with the terms of the episode."""
        self._call("on_train_batch_end", trainer, pl_module, batch, batch_idx, outputs=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forward."""
        self._call("on_train_end", trainer, pl_module)


class Group:
    """Runs one method on several episodes together; see `SideBySide`.

    Args:
        module: Backbone, tuner and objective.
        members: A member of the module for each episode.
        sources: A data module for each episode.
        arguments: The Trainer's arguments from the config.
        switch: The stage of SVL and RA.
        progress: Shows every step and test batch.
        more: Further callbacks of the run, for each episode.
        clock: Measures how long the device has a batch.
    """

    def __init__(
        self,
        module: FewShotClassifier,
        members: Sequence[FewShotClassifier],
        sources: Sequence[FewShotDataModule],
        arguments: Mapping[str, Any],
        switch: StageSwitch,
        progress: EpisodeProgress,
        more: Sequence[Sequence[Callback]],
        clock: Callback,
    ) -> None:
        self.module, self.arguments, self.clock = module, dict(arguments), clock
        self.switch = switch
        self.episodes = []
        for member, source, callbacks in zip(members, sources, more, strict=True):
            recorder = EpisodeRecorder(progress)
            # A copy of the switch: AlignmentMonitor asks the Trainer for it.
            own = [copy.deepcopy(switch), recorder, *callbacks]
            trainer = episode_trainer(self.arguments, own)
            self.episodes.append(Episode(source, member, trainer, recorder, callbacks))

    def run(self, finish: Callable[[Episode, Row | None], None]) -> None:
        """Test, train and test.

        Args:
            finish: Gets each episode with its row while the tuner has its state; None in place of a row if the training
                diverged: such an episode is to run alone, which says from which step on.
        """
        started = time.monotonic()
        with keyboard_interrupts(), explained_use([*parts_of(self.module), self.episodes[0].data]):
            for episode in self.episodes:
                with tf32_allowed(episode.trainer):
                    if episode.data.has_query:
                        episode.zero_shot = zero_shot_measures(episode.trainer, episode.module, episode.data)
            states, lost = self.fit()
            shared = (time.monotonic() - started) / len(self.episodes)
            for number, episode in enumerate(self.episodes):
                row = None if number in lost else self._tested(episode, states[number], shared)
                finish(episode, row)

    def fit(self) -> tuple[list[dict[str, torch.Tensor]], set[int]]:
        """Train all episodes; return their states, and the numbers of those that diverged."""
        together = SideBySide([episode.module for episode in self.episodes])
        first = self.episodes[0].data
        steps = len(first.train_dataloader())  # type: ignore[arg-type]
        nothing: Batch = {"images": torch.zeros(0)}  # the module has the batches: they are the same in every step
        loader = Batches([nothing] * steps, first.current.preprocessing)
        arguments = {**self.arguments, "callbacks": None}
        trainer = episode_trainer(arguments, [self.switch, self.clock, OfEachEpisode(self.episodes)])
        self.fitted = trainer
        try:
            with tf32_allowed(trainer):
                trainer.fit(together, loader)  # type: ignore[arg-type]
        except DivergedError:  # such as a gradient that overflows with every loss scale
            return [], set(range(len(self.episodes)))
        finally:
            states = together.end()
        return states, together.lost

    def _tested(self, episode: Episode, state: Mapping[str, torch.Tensor], shared: float) -> Row | None:
        started = time.monotonic()
        module, data = episode.module, episode.data
        module.tuner.load_adapter_state(dict(state))
        module.trainer = episode.trainer
        with tf32_allowed(episode.trainer) as tf32:
            if data.has_query:
                try:
                    episode.trainer.test(module, datamodule=data, verbose=False)
                except DivergedError:
                    return None
        row = row_of(episode.trainer, module, data, episode.recorder, episode.zero_shot, None, self.fitted, tf32=tf32)
        row["seconds"] = round(shared + time.monotonic() - started, 3)
        return row
