"""A picture of one episode: the support views and the queries with their predicted classes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..drawing import GREY, HEAD, MARGIN, draw_frame, draw_pixels, draw_text, fitted, new_page, save_png
from .claims import TASK, number_of, so_far
from .image_results import Guesses, percent
from .run_folder import RESUMES, Row
from .summary import mean_of

if TYPE_CHECKING:  # so that the figure can be drawn without torch
    from torch import Tensor

    from ..datamodules.few_shot import FewShotDataModule
    from ..lightning_modules import FewShotClassifier

Images = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer] | Sequence[int]

RIGHT, WRONG = "#009e73", "#d55e00"  # Okabe and Ito's green and vermilion, which color-blind readers can distinguish
CELL, CAPTION, LINE, GAP = 0.9, 0.32, 0.098, 0.3  # inches
NAME_WIDTH = 1.5
MAX_CLASSES, MAX_SHOTS, MAX_QUERIES, QUERY_COLUMNS = 20, 3, 16, 8


def save_episode_picture(
    path: Path, module: FewShotClassifier, data: FewShotDataModule, row: Row, *, named: bool = True
) -> None:
    """Draw the data module's current episode with the predictions of the module's last test into a PNG file.

    Args:
        path: The file.
        module: The module; where its scores were kept, the picture has probabilities and the zero-shot prediction.
        data: The data module, set to the episode.
        row: The row of the episode.
        named: Whether the title names the method.

    Raises:
        DtrapError: The file cannot be written.
    """
    support = data.support()
    images = visible(support["images"], data)
    images = images.reshape(data.views, -1, *images.shape[1:])
    queries, labels, predictions = images[0, :0], np.empty(0, dtype=int), np.empty(0, dtype=int)
    tuned = zero_shot = None
    if data.has_query:
        query = data.query()
        queries, labels = visible(query["images"], data), query["labels"].numpy()
        predictions = np.concatenate([part.numpy() for part in module.test_predictions])
        tuned, zero_shot = _guesses(module, len(labels))
    interval = mean_of([row])
    accuracy = "" if interval is None else so_far(interval, data.unit)
    number = "" if data.unit == TASK else f"{data.unit} {number_of(data.unit, row['episode'])}"
    title = [data.description, number, row["method"] if named or number else "", accuracy]
    figure = episode_figure(
        support_images=images,
        support_labels=support["labels"][: images.shape[1]].numpy(),
        query_images=queries,
        query_labels=labels,
        query_predictions=predictions,
        class_names=data.class_names,
        title=", ".join(part for part in title if part),
        tuned=tuned,
        zero_shot=zero_shot,
    )
    save_png(path, figure, RESUMES)


def _guesses(module: FewShotClassifier, images: int) -> tuple[Guesses | None, Guesses | None]:
    """Return what the tuned model and the backbone say of the queries; None where their scores were not kept."""
    kept = module.kept_scores
    if sum(map(len, kept.scores)) != images:
        return None, None
    scores, ids = (np.concatenate([part.numpy() for part in parts]) for parts in (kept.scores, kept.sample_ids))
    known = [part.numpy() for part in kept.zero_shot_ids]
    same = bool(known) and np.array_equal(np.concatenate(known), ids)
    before = np.concatenate([part.numpy() for part in kept.zero_shot_scores]) if same else None
    return Guesses.of(scores), None if before is None else Guesses.of(before)


def visible(images: Tensor, data: FewShotDataModule) -> Images:
    """Undo the normalization of images [N, 3, H, W]."""
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (data.preprocessing.mean, data.preprocessing.std))
    return (images.numpy() * std + mean).clip(0, 1)


def episode_figure(
    *,
    support_images: Images,
    support_labels: Labels,
    query_images: Images,
    query_labels: Labels,
    query_predictions: Labels,
    class_names: Sequence[str],
    title: str,
    tuned: Guesses | None = None,
    zero_shot: Guesses | None = None,
) -> Figure:
    """Draw one episode: a band per class with its support views and its queries.

    At most 20 classes, 3 support images and 16 queries per class are shown; the picture says so. The figure does not
    belong to pyplot.

    Args:
        support_images: [V, M, 3, H, W] in 0..1, view 0 the plain one.
        support_labels: [M] in 0..W-1; classes may be of unequal size.
        query_images: [Q, 3, H, W] in 0..1; Q may be 0.
        query_labels: [Q] true classes.
        query_predictions: [Q] predicted classes.
        class_names: The W names.
        title: First line of the picture.
        tuned: What the model says of each query, for the probability of the predicted class.
        zero_shot: What the backbone says of each query without the tuner.
    """
    support_labels, true = np.asarray(support_labels), np.asarray(query_labels)
    predicted = np.asarray(query_predictions)
    full_names = [" ".join(name.replace("_", " ").split()) or name for name in class_names]
    short_names = _distinct(full_names)
    chances = None if tuned is None else [percent(chance) for chance in tuned.probability]
    before = None if zero_shot is None else zero_shot.labeled(short_names)
    bands = [
        _Band(
            name=full_names[label],
            support=np.asarray(support_images)[:, support_labels == label],
            queries=np.asarray(query_images)[true == label],
            right=predicted[true == label] == label,
            predicted=[short_names[prediction] for prediction in predicted[true == label]],
            chances=_of(chances, true == label),
            before=_of(before, true == label),
        )
        for label in range(min(len(class_names), MAX_CLASSES))
    ]
    views = len(support_images)
    columns = max(min(len(band.queries), QUERY_COLUMNS) for band in bands)
    width = MARGIN + NAME_WIDTH + views * CELL + (GAP + columns * CELL if columns else 0.0) + MARGIN
    width = max(width, 6.0)
    height = HEAD + sum(band.height for band in bands) + MARGIN
    shown = fitted(title, width - 2 * MARGIN, 12, "bold")
    figure, axes = new_page(width, height, shown, _counts(true, predicted, len(class_names)))
    _draw_head(axes, views, columns)
    top = HEAD
    for band in bands:
        _draw_band(axes, band, top, width)
        top += band.height
    return figure


@dataclass(frozen=True)
class _Band:
    """The band of one class: support [V, m, 3, H, W], and queries [q, 3, H, W] with their predictions."""

    name: str
    support: Images
    queries: Images
    right: npt.NDArray[np.bool_]
    predicted: list[str]
    chances: list[str] | None
    before: list[str] | None

    @property
    def row(self) -> float:
        """Height of a row of queries with their captions."""
        more = (0 if self.chances is None else 1) + (0 if self.before is None else 2)
        return CELL + CAPTION + more * LINE

    @property
    def height(self) -> float:
        shots = min(self.support.shape[1], MAX_SHOTS)
        rows = math.ceil(min(len(self.queries), MAX_QUERIES) / QUERY_COLUMNS)
        return max(shots * CELL, rows * self.row, CELL) + GAP / 2


def _of(texts: list[str] | None, chosen: npt.NDArray[np.bool_]) -> list[str] | None:
    return None if texts is None else [text for text, taken in zip(texts, chosen, strict=True) if taken]


def _draw_head(axes: Axes, views: int, columns: int) -> None:
    left = MARGIN + NAME_WIDTH
    others = {1: "", 2: " and 1 changed view"}.get(views, f" and {views - 1} changed views")
    draw_text(axes, left, HEAD - 0.2, f"support: plain{others}", size=8, color=GREY)
    if columns:
        draw_text(axes, left + views * CELL + GAP, HEAD - 0.2, "queries", size=8, color=GREY)


def _draw_band(axes: Axes, band: _Band, top: float, width: float) -> None:
    axes.plot([MARGIN, width - MARGIN], [top - 0.03, top - 0.03], color="#dddddd", linewidth=0.6)
    lines = _wrapped(band.name, 16, 3)
    draw_text(axes, MARGIN, top + 0.05, "\n".join(lines), size=9, weight="bold")
    draw_text(axes, MARGIN, top + 0.12 + 0.155 * len(lines), _band_note(band), size=7, color=GREY, linespacing=1.4)
    left = MARGIN + NAME_WIDTH
    for view, images in enumerate(band.support):
        for shot, image in enumerate(images[:MAX_SHOTS]):
            _draw_image(axes, image, left + view * CELL, top + shot * CELL)
    left += len(band.support) * CELL + GAP
    for number, image in enumerate(band.queries[:MAX_QUERIES]):
        row, column = divmod(number, QUERY_COLUMNS)
        x, y = left + column * CELL, top + row * band.row
        if band.right[number]:
            caption, style, frame = band.predicted[number], {"color": GREY}, {"edgecolor": RIGHT, "linewidth": 1.5}
        else:
            caption, style = f"as: {band.predicted[number]}", {"color": "black", "weight": "bold"}
            frame = {"edgecolor": WRONG, "linewidth": 3.0}
        _draw_image(axes, image, x, y, **frame)
        x, y = x + (CELL - 0.08) / 2, y + CELL - 0.04
        lines = _wrapped(caption, 15, 2)
        draw_text(axes, x, y, "\n".join(lines), size=6, horizontalalignment="center", **style)
        more = [] if band.chances is None else [band.chances[number]]
        more += [] if band.before is None else _wrapped(f"zero-shot: {band.before[number]}", 17, 2)
        y += len(lines) * LINE
        draw_text(axes, x, y, "\n".join(more), size=6, horizontalalignment="center", color=GREY)


def _band_note(band: _Band) -> str:
    notes = []
    shots, queries = band.support.shape[1], len(band.queries)
    notes.append(f"{MAX_SHOTS} of {shots} shots" if shots > MAX_SHOTS else "")
    notes.append(f"{int(band.right.sum())} of {queries} right" if queries else "")
    notes.append(f"first {MAX_QUERIES} queries shown" if queries > MAX_QUERIES else "")
    return "\n".join(note for note in notes if note)


def _counts(true: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer], classes: int) -> str:
    parts = []
    if len(true):
        parts.append(f"{int((true == predicted).sum())} of {len(true)} queries right")
        parts.append("wrong ones: thick orange frame and 'as: NAME' in bold")
    if classes > MAX_CLASSES:
        parts.append(f"the first {MAX_CLASSES} of {classes} classes")
    return " · ".join(parts) or "no held-out images"


def _draw_image(axes: Axes, image: Images, x: float, y: float, **frame: Any) -> None:
    side = CELL - 0.08
    pixels = np.clip(np.nan_to_num(np.moveaxis(image, 0, -1)), 0.0, 1.0).astype(np.float32)
    draw_pixels(axes, pixels, x, y, side, side)
    if frame:
        draw_frame(axes, x, y, side, **frame)


def _wrapped(text: str, width: int, lines: int) -> list[str]:
    """Wrap a text into at most `lines` lines of `width` characters; a longer text loses its middle."""
    found = textwrap.wrap(text, width)
    kept = lines * width - 1
    while len(found) > lines:
        kept -= 1
        found = textwrap.wrap(f"{text[: kept // 2]}…{text[kept // 2 - kept :]}", width)
    return found


def _distinct(names: Sequence[str]) -> list[str]:
    """Names for the captions; names that look the same when shortened are prefixed with the class's number."""
    short = [_wrapped(f"as: {name}", 15, 2) for name in names]
    return [
        f"{number}: {name}" if short.count(short[number - 1]) > 1 else name
        for number, name in enumerate(names, start=1)
    ]
