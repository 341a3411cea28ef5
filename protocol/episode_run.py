"""Methods on episodes in one process: the modules, the row of each episode and the files that belong to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from ..callbacks.stop_at_loss import FinalLoss
from ..datamodules.few_shot import FewShotDataModule
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.feature_store import FeatureStores
from .adapters import AdapterCard, save_adapter
from .checkpoint import StepCheckpoint
from .device_clock import DeviceClock
from .episode import ZeroShots, parts_of, run_episode
from .episode_pictures import check_relevance, draw_pictures
from .explanation import explained_use
from .features import FeatureFile
from .folder_identity import Method
from .method_names import find_same
from .own_scores import OwnScores
from .predictions import keeps_predictions, save_predictions
from .progress import EpisodeProgress
from .references import loss_windows
from .rehearsal import Loaded, build_modules, rehearse
from .run_folder import Row, RunFolder
from .settings import ProtocolSettings


class EpisodeRun:
    """Runs methods on the data module's current episode; it writes no row.

    A process that has the methods' configs, the data and the settings can build one: rows depend on nothing else.

    Args:
        methods: The methods of the run.
        data: The data module, set up.
        settings: Which files are written.
        folder: Where they are written, and checkpoints of long tasks.
        loaded: Backbones and tuners that this process has loaded; used, and added to.
        leads: Whether this process writes the files; of several that share an episode one does.

    Attributes:
        same: Methods that train the same as an earlier one, by name: they have no module, and get its row.
        modules: The module of each other method, by name.
        arguments: The Trainer's arguments of each method, by name. Only the first method has loggers, which log all
            methods, and some of which start a run when they are created; in a process that writes nothing none has.
        feature_stores: Features on disk of frozen image towers; None for none.
        clock: How long the device had a batch, and how long it had none.

    Raises:
        DtrapError: A prompt, a schedule or a setting does not fit a module.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        data: FewShotDataModule,
        settings: ProtocolSettings,
        folder: RunFolder,
        loaded: Loaded | None = None,
        *,
        leads: bool = True,
    ) -> None:
        self.methods = {method.name: method for method in methods}
        self.data, self.settings, self.folder, self.leads = data, settings, folder, leads
        self.same = find_same(methods)
        trained = [method for method in methods if method.name not in self.same]
        self.modules: dict[str, FewShotClassifier] = build_modules(trained, loaded)
        for module in dict.fromkeys(self.modules.values()):
            with explained_use([*parts_of(module), data]):
                rehearse(module, data)
        self.feature_stores = _feature_stores(settings)
        check_relevance(settings, self.modules)
        for module in self.modules.values():
            kept = keeps_predictions(settings, data)
            module.kept_scores.wanted = kept or settings.pictures > 0 or settings.save_adapters
            module.kept_scores.zero_shot_wanted = module.kept_scores.wanted and not data.streams
            module.stored_images.stores, module.stored_images.apart = self.feature_stores, True
        self.arguments: dict[str, dict[str, Any]] = {
            method.name: method.trainer_arguments(logger=leads and method is methods[0], folder=folder.path)
            for method in methods
        }
        self._windows = loss_windows(self.arguments.values())
        self._zero_shots: dict[str, ZeroShots] = {}
        self.clock = DeviceClock()

    def run(
        self,
        name: str,
        progress: EpisodeProgress,
        rows: Sequence[Row],
        append: Callable[[Row], Any],
        data: FewShotDataModule | None = None,
    ) -> Row:
        """Run a method on the current episode, write the files of its row and pass the row to `append`.

        Args:
            name: The method.
            progress: Shows every step and test batch.
            rows: The rows of the run so far; a callback may need that of another method of this episode.
            append: Writes the row. It is called after the other files are written, so that a kill in between repeats
                the episode, and before a checkpoint is deleted, so that a kill in between loses nothing.
            data: A data module that is set to another episode; None for the current one.
        """
        method, module, data = self.methods[name], self.modules[name], data or self.data
        stem = f"episode_{data.episode:04d}_{name}"
        checkpoint = zero_shots = None
        if data.streams:
            zero_shots = self._zero_shots.setdefault(name, {})
            path, every = self.folder.checkpoints / f"{stem}.ckpt", self.settings.checkpoint_every
            checkpoint = StepCheckpoint(path, every, self.folder.check_present, leads=self.leads)
        more = [self.clock, *self.callbacks(data)]
        module.stored_images.offer(data)
        self.clock.begin()
        switch, arguments = method.stage_switch(), self.arguments[name]
        row = run_episode(module, data, arguments, switch, progress, checkpoint, zero_shots, more, rows)
        row = self.finish(name, module, data, row, more)
        append(row)
        if self.feature_stores is not None:
            self.feature_stores.save()
        if checkpoint is not None:
            checkpoint.remove()
        return row

    def callbacks(self, data: FewShotDataModule) -> list[Callback]:
        """Return the callbacks of the run for a data module's episode."""
        features = [FeatureFile()] if data.episode < self.settings.save_features else []
        scores = [OwnScores()] if self.settings.save_adapters else []
        return [FinalLoss(self._windows), *features, *scores]

    def finish(
        self,
        name: str,
        module: FewShotClassifier,
        data: FewShotDataModule,
        row: Row,
        callbacks: Sequence[Callback],
    ) -> Row:
        """Write what the settings ask for beside a row, and return the row with its method.

        A diverged training leaves pictures only.
        """
        row = {"episode": row.pop("episode"), "method": name, **row}
        self.folder.check_present()
        if not self.leads:
            return row
        folder, settings, stem = self.folder, self.settings, f"episode_{data.episode:04d}_{name}"
        features = next((each for each in callbacks if isinstance(each, FeatureFile)), None)
        if "diverged" not in row:
            if settings.save_adapters:
                card = AdapterCard.of(module, data, row, list(self.methods), row["precision"])
                scores = next((each for each in callbacks if isinstance(each, OwnScores)), None)
                card = card if scores is None else scores.describe(card, module)
                save_adapter(folder.adapters / f"{stem}.safetensors", module, card)
            if keeps_predictions(settings, data):
                save_predictions(folder.predictions / f"{stem}.safetensors", module, data)
            if features is not None:
                features.save(folder.features / f"{stem}.safetensors", row["classes"])
        draw_pictures(folder, settings, module, data, row, named=len(self.methods) > 1)
        return row


def _feature_stores(settings: ProtocolSettings) -> FeatureStores | None:
    """Return the stores that `--protocol.feature_store` asks for."""
    wanted = settings.feature_store
    if wanted is False:
        return None
    return FeatureStores(Path(wanted).expanduser() if isinstance(wanted, str) else None, foreign=wanted is not None)
