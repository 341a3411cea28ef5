"""Files of predictions: the scores of every query of an episode, and pictures of the most confident errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save

from ..datamodules.few_shot import FewShotDataModule
from ..datamodules.images import ImageError
from ..files import write_atomically
from ..lightning_modules import FewShotClassifier
from .claims import REPEAT, TASK
from .run_folder import RESUMES
from .settings import ProtocolSettings

FORMAT = "dtrap-predictions/1"
ERRORS, SIDE = 12, 64
SCORE_BYTES = 8  # of a class of an image, with and without the tuner
NAME_BYTES = 150  # of a file's name, for the space on the disk


def save_predictions(path: Path, module: FewShotClassifier, data: FewShotDataModule) -> None:
    """Write the scores that the module's last test has kept into a safetensors file.

    It holds `scores` [Q, W], whose softmax are the class probabilities, `labels` [Q], where they were kept the
    `zero_shot_scores` [Q, W] of the backbone without the tuner, `thumbnails` [N, 64, 64, 3] of
    the at most 12 most confident errors and their rows `thumbnail_rows` [N]. The metadata are JSON texts: `class_names`
    and `images`, the names of the files without the place of the data.

    Raises:
        DtrapError: The file cannot be written.
    """
    kept = module.kept_scores
    scores, labels, ids = torch.cat(kept.scores), torch.cat(kept.labels), torch.cat(kept.sample_ids)
    zero_shot, images = kept.zero_shot_of(ids), ids.tolist()
    pictures = {row: thumbnail for row in _errors(scores, labels) if (thumbnail := _thumbnail(data, images[row]))}
    content = {
        "scores": scores.contiguous(),
        "labels": labels.contiguous(),
        "thumbnails": torch.from_numpy(
            np.stack([np.asarray(picture) for picture in pictures.values()])
            if pictures
            else np.empty((0, SIDE, SIDE, 3), dtype=np.uint8)
        ),
        "thumbnail_rows": torch.tensor(list(pictures), dtype=torch.int64),
        **({} if zero_shot is None else {"zero_shot_scores": zero_shot.contiguous()}),
    }
    names = [name_of(data, image) for image in images]
    # ASCII: a byte of a file name that is not UTF-8 becomes an escape.
    metadata = {"format": FORMAT, "class_names": json.dumps(data.class_names), "images": json.dumps(names)}
    write_atomically(path, save(content, metadata=metadata), RESUMES)


def keeps_predictions(settings: ProtocolSettings, data: FewShotDataModule) -> bool:
    """Whether a run saves its predictions: as asked for, or else those on a user's own test images."""
    wanted = data.unit in (TASK, REPEAT) if settings.save_predictions is None else settings.save_predictions
    return wanted and data.has_query


def predictions_bytes(data: FewShotDataModule) -> int:
    """Return about how large the file of the current episode becomes."""
    queries, classes = sum(map(len, data.task.query)), len(data.task.classes)
    return queries * (SCORE_BYTES * classes + 8 + NAME_BYTES) + ERRORS * (3 * SIDE**2 + 8)


def name_of(data: FewShotDataModule, image: int) -> str:
    """Return the path of an image without the place of the data."""
    name = data.index.relative(image)
    return name.partition("/")[2] if data.index.roots and name != data.index.paths[image] else name


def _errors(scores: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """Return the rows that are wrong with the highest probability, the most confident first."""
    highest, predicted = scores.double().softmax(dim=-1).max(dim=-1)
    wrong = (predicted != labels).nonzero().flatten()
    order = highest[wrong].argsort(descending=True, stable=True)
    return wrong[order][:ERRORS].tolist()


def _thumbnail(data: FewShotDataModule, image: int) -> Image.Image | None:
    """Return a small picture of the whole image; None if it can no longer be read."""
    try:
        return ImageOps.pad(data.load_image(image), (SIDE, SIDE))
    except ImageError:
        return None
