"""Content for a TensorBoardLogger: scalars, images, tables as text, and the config for its HPARAMS page."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from .content import Content
from .target import Target, quiet

RANKED = ("accuracy_mean", "cross_entropy_mean")


class TensorBoardTarget(Target):
    """A TensorBoardLogger; a later start goes on in the same folder with the episodes that it lacks."""

    holds = True
    logger: TensorBoardLogger

    def start(self) -> None:
        """Start in the logger's folder, and forget episodes of a folder that is gone."""
        place = self.place_in("tensorboard", self.logger.log_dir)
        # Private: without it a run's page of hyperparameters shows a metric of -1, which nobody has measured.
        self.logger._default_hp_metric = False
        if not self.logger._fs.exists(self.logger.log_dir):
            self.run.logged.forget(place)
        self.goes_on(place)
        super().start()

    def log(self, metrics: Mapping[str, float], content: Content) -> None:
        """Log the numbers of an episode as scalars, pictures as images and tables as text."""
        super().log(metrics, content)
        self._write(content, int(metrics["episode"]))
        self.logger.experiment.flush()

    def close(self, means: Mapping[str, float], content: Content) -> None:
        """Log the tables, and the config with the final means."""
        self._write(content, int(max(self.known, default=0)))
        ranked = {f"final/{name}": means[name] for name in RANKED if name in means}
        if ranked:
            with quiet():
                self.logger.log_hyperparams(self.run.config, ranked)

    def _write(self, content: Content, step: int) -> None:
        writer = self.logger.experiment
        for name, table in content.tables.items():
            writer.add_text(name, table.markdown(), step)
        for name, picture in content.pictures.items():
            with Image.open(io.BytesIO(picture.png())) as image:
                writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
