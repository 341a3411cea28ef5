"""`dtrap.Classifier`: a saved adapter that labels images, in Python and behind `dtrap predict`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ..datamodules.given_images import find_images
from ..datamodules.unlabeled import UnlabeledImages
from ..errors import DtrapError, check_at_least
from ..lightning_modules import FewShotClassifier
from .adapters import AdapterCard, is_standalone, read_card
from .precision import FORMER, FULL, HALF, PRECISIONS, canonical, device_of
from .prediction_table import Predictions, check_unsure, predictions_of
from .preprocessing import read_preprocessing
from .rejection import DEFAULT_KIND, Similarity, Threshold, threshold_of
from .saved_model import build_saved, find_adapter
from .temperature import FEW_IMAGES
from .workers.images import BATCH_SIZE, Labeled, concatenated, label

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

    Given = str | os.PathLike[str] | Image | ndarray


class Classifier:
    """A tuned model that labels images.

    `Classifier.load("my.safetensors").predict("new_photos")` returns what `dtrap predict` writes into its CSV.

    Args:
        module: The tuned model; `load` makes it of a saved adapter.
        card: The adapter's card.
        path: The adapter, for messages.
        trainer: Arguments of the Trainer that predicts: device and precision.

    Attributes:
        module: The model.
        card: What is known of the adapter.
        path: The adapter.
    """

    def __init__(
        self, module: FewShotClassifier, card: AdapterCard, path: Path, trainer: Mapping[str, Any] | None = None
    ) -> None:
        self.module, self.card, self.path = module, card, path
        self.trainer: dict[str, Any] = dict(trainer or {})
        self.preprocessing = read_preprocessing(card.preprocessing, module.backbone, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        precision: str | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Classifier:
        """Load a saved adapter.

        Nothing but dtrap's own classes is imported, and nothing is downloaded but the published weights of the
        backbone, if they are not cached.

        Args:
            path: An adapter (.safetensors), a run folder with one adapter, or a folder that `dtrap export` wrote.
            device: Where images are labeled, such as "cpu", "cuda" or "cuda:1"; "auto" for a GPU where there is one.
            precision: The Trainer's precision, such as "32-true"; None for that of the training.
            files: Where local files of the backbone are now, by its arguments, such as {"pretrained": "clip.pt"}.

        Raises:
            DtrapError: There is no such adapter, it is damaged, or something it needs is missing.
        """
        adapter = find_adapter(Path(path).expanduser())
        card = read_card(adapter)
        trainer = _trainer_arguments(device, precision, card)
        return cls(build_saved(adapter, card, files), card, adapter, trainer)

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the columns."""
        return list(self.card.class_names)

    @property
    def temperature(self) -> float | None:
        """What scores are divided by, fitted on held-out images; None if there were none."""
        return self.card.temperature

    def predict(
        self,
        images: Given | Sequence[Given],
        *,
        batch_size: int = BATCH_SIZE,
        unsure: float | None = None,
        reject: float | None = None,
        reject_by: Similarity = DEFAULT_KIND,
    ) -> pd.DataFrame:
        """Label images.

        Args:
            images: A path of an image, a folder with its sub-folders, a pattern such as "photos/*.jpg", a table with a
                column `path`, a PIL image, an array [H, W, 3] of bytes, or a list of these.
            batch_size: Images that go through the model at a time.
            unsure: Label what has a lower confidence as "unsure".
            reject: Label images that are like none of the classes as "rejected": the share of the classes' own images
                below the threshold, such as 0.05.
            reject_by: The similarity that is compared with the threshold.

        Returns:
            A row for each readable image with `path`, `label`, `confidence` (`score` where no temperature was fitted),
            `runner_up`, its confidence or score, and the probability of each class, rounded to six decimals. With
            `unsure` or `reject` also `most_likely`, the class that may be withheld, and with `reject` `similarity`.
            `frame.attrs["unreadable"]` lists (path, reason) of the other images, which are a warning.

        Raises:
            DtrapError: Something is not as expected, or there is no image.
        """
        check_at_least("batch_size", batch_size, 1)
        check_unsure(unsure)
        threshold = self.threshold(reject, reject_by)
        data = self.read(images)
        zero_shot = threshold is not None and threshold.kind == "zero_shot"
        labeled = label(self.module, data, self.trainer, zero_shot=zero_shot, batch_size=batch_size)
        frame = self.predictions(data, labeled, unsure, threshold).frame
        unreadable = unreadable_images(data, labeled)
        if unreadable:
            path, reason = unreadable[0]
            warnings.warn(
                f"{len(unreadable)} images could not be read and have no row, such as {path}: {reason}", stacklevel=2
            )
        frame.attrs["unreadable"] = unreadable
        return frame

    def read(self, images: Given | Sequence[Given]) -> UnlabeledImages:
        """Return the images as the model gets them; nothing is opened yet.

        Raises:
            DtrapError: Something does not exist, or there is no image.
        """
        return UnlabeledImages(
            find_images(images), self.preprocessing, (self.card.preprocessing or {}).get("value_range")
        )

    def threshold(self, reject: float | None, reject_by: str = DEFAULT_KIND) -> Threshold | None:
        """Return the threshold of a rate; None for None.

        Raises:
            DtrapError: The card has no such threshold, or the model cannot say the similarity.
        """
        if reject is None:
            return None
        if reject_by == "zero_shot" and is_standalone(self.path):
            raise DtrapError(
                f"{self.path} has the tuned weights only, so it has no zero-shot similarity. Use --reject_by tuned, or "
                "the adapter that it was exported from."
            )
        return threshold_of(self.card.rejection, float(reject), reject_by, self.path)

    def predictions(
        self, data: UnlabeledImages, labeled: Labeled, unsure: float | None, threshold: Threshold | None
    ) -> Predictions:
        """Return the predictions of images whose scores are known."""
        unreadable = {path for path, _ in labeled.unreadable}
        zero_shot = threshold is not None and threshold.kind == "zero_shot"
        return predictions_of(
            [path for path in data.paths if path not in unreadable],
            concatenated(labeled, len(self.card.class_names), zero_shot=zero_shot),
            self.card.class_names,
            float(self.module.objective.logit_scale),
            temperature=self.temperature,
            unsure=unsure,
            threshold=threshold,
        )

    def describe_confidence(self) -> str:
        """Return a sentence on what the column `confidence` or `score` rests on."""
        known = self.card.calibration
        if self.temperature is None or known is None:
            return (
                "Scores are not calibrated: no temperature was fitted on held-out images, so that they may be far too "
                "high (train with --data.held_out or --data.query_root)."
            )
        images = int(known.get("images", 0))
        few = ", which are few" if images < FEW_IMAGES else ""
        before, after = (known.get(f"calibration_error_{when}") for when in ("before", "after"))
        errors = (
            "" if before is None or after is None else f"; calibration error {before:.1f} % before, {after:.1f} % after"
        )
        return f"Confidence at temperature {self.temperature:.3g}, fitted on {images:,} held-out images{few}{errors}."


def unreadable_images(data: UnlabeledImages, labeled: Labeled) -> list[tuple[str, str]]:
    """Return (path, reason) of what could not be read."""
    return [*labeled.unreadable, *((str(path), reason) for path, reason in data.faults)]


def _trainer_arguments(device: str | torch.device, precision: str | None, card: AdapterCard) -> dict[str, Any]:
    """Return the Trainer's arguments for a device, with the precision of the training where it has it."""
    accelerator, _, number = str(device).partition(":")
    arguments: dict[str, Any] = {"accelerator": accelerator, "devices": [int(number)] if number.isdigit() else 1}
    if accelerator == "cpu":
        arguments["devices"] = 1
    known = card.precision in (*PRECISIONS, *PRECISIONS.values(), "16-true", "bf16-true")
    asked = canonical(precision or (card.precision if known else FORMER))
    place = device_of(arguments)
    if place is None:
        raise DtrapError(f"device is {str(device)!r}, which is not here. Use device='cpu' or device='auto'.")
    half_on_cpu = precision is None and asked == HALF and place.type == "cpu"
    # A prediction has no epoch, but every Trainer here is asked for its length.
    return {**arguments, "max_epochs": 1, "precision": FULL if half_on_cpu else asked}
