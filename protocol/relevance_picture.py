"""A picture of where a model finds the class texts in the queries of one episode, before and after the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..datamodules.few_shot import FewShotDataModule
from ..drawing import GREY, HEAD, MARGIN, draw_frame, draw_pixels, draw_text, fitted, new_page, save_png
from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from ..lightning_modules.relevance import check_blocks, check_text_space, gradient_map, predictions, text_map
from .picture import RIGHT, WRONG, Images, visible
from .run_folder import RESUMES, Row

MOST_IMAGES = 15
SIDE, GAP, CAPTION, COLUMN_HEAD = 0.85, 0.08, 0.2, 0.75  # inches
COLORS = colormaps["cividis"]  # the same order of lightness for color-blind readers
OPACITY = 0.75
METHODS = {"text": "cosine of each patch to the text", "gradient": "gradient-weighted attention"}

Maps = npt.NDArray[np.floating]


@dataclass(frozen=True)
class RelevanceColumns:
    """The maps of one method.

    Attributes:
        title: What the maps are.
        shared: Whether the values of maps can be compared, so that a row has one color scale.
        true: Maps [2, N, h, w] for the true class, before and after the training.
        predicted: The same for the class that the trained model predicts.
    """

    title: str
    shared: bool
    true: Maps
    predicted: Maps


def find_methods(module: FewShotClassifier) -> dict[str, str]:
    """Return the maps that are defined for a model, by name "text" and "gradient": empty, or why it is not.

    Raises:
        DtrapError: None is defined.
    """
    check_blocks(module)
    size = module.backbone.image_size
    blank = torch.zeros(1, 3, size, size)
    with module.zero_shot():
        gradient_map(module, blank, torch.zeros(1, dtype=torch.long))
        text_map(module, blank)
    try:
        check_text_space(module, blank)
    except DtrapError as error:
        return {"text": str(error), "gradient": ""}
    return dict.fromkeys(METHODS, "")


def save_relevance_picture(path: Path, module: FewShotClassifier, data: FewShotDataModule, row: Row) -> None:
    """Draw relevance maps of the data module's current episode into a PNG file.

    Shown are the first queries of each class, or support images where there are no queries, whatever their result.

    Raises:
        DtrapError: The file cannot be written.
    """
    batch, what = (data.query(), "queries") if data.has_query else (data.support(), "support images")
    every = batch["labels"] if data.has_query else batch["labels"][: len(batch["labels"]) // data.views]
    chosen = first_of_each_class(every.tolist(), MOST_IMAGES)
    images, labels = batch["images"][chosen], every[chosen]
    # The test of a tuner that adds up the views of a query says more than a pass through one view.
    predicted = torch.cat(module.test_predictions)[chosen] if data.has_query else predictions(module, images)
    figure = relevance_figure(
        images=visible(images, data),
        labels=labels.tolist(),
        predictions=predicted.tolist(),
        class_names=data.class_names,
        columns=_columns(module, images, labels, predicted),
        title=f"{data.description}, episode {row['episode']}, {row['method']}: relevance",
        what=f"{len(chosen)} of {len(every)} {what}, the first of each class",
    )
    save_png(path, figure, RESUMES)


def first_of_each_class(labels: Sequence[int], most: int) -> list[int]:
    """Return the indices of as many first images of each class as `most` allows, at least one, sorted by class."""
    classes = sorted(set(labels))[:most]
    each = max(most // max(len(classes), 1), 1)
    return [index for label in classes for index in [i for i, other in enumerate(labels) if other == label][:each]]


def _columns(
    module: FewShotClassifier, images: torch.Tensor, labels: torch.Tensor, predictions: torch.Tensor
) -> list[RelevanceColumns]:
    methods = find_methods(module)
    found: dict[str, list[tuple[Maps, Maps]]] = {name: [] for name in methods}
    rows = torch.arange(len(images))
    for trained in (False, True):
        for name, problem in methods.items():
            if problem:
                continue
            if trained:
                found[name].append(_maps(name, module, images, rows, labels, predictions))
            else:
                with module.zero_shot():
                    found[name].append(_maps(name, module, images, rows, labels, predictions))
    return [
        RelevanceColumns(METHODS[name], name == "text", *(np.stack(part) for part in zip(*maps, strict=True)))
        for name, maps in found.items()
        if maps
    ]


def _maps(
    name: str,
    module: FewShotClassifier,
    images: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
    predictions: torch.Tensor,
) -> tuple[Maps, Maps]:
    """Return the maps [N, h, w] for the true and for the predicted classes."""
    if name == "text":
        every = text_map(module, images)
        return every[rows, labels].numpy(), every[rows, predictions].numpy()
    return tuple(gradient_map(module, images, classes).numpy() for classes in (labels, predictions))  # type: ignore


def relevance_figure(
    *,
    images: Images,
    labels: Sequence[int],
    predictions: Sequence[int],
    class_names: Sequence[str],
    columns: Sequence[RelevanceColumns],
    title: str,
    what: str,
) -> Figure:
    """Draw a row for each image: the image, and for each method its maps for the true and the predicted class.

    Cosines have one color scale within a row: before and after the training, and of both classes. Gradients have no
    common unit; each of their maps has a scale of its own. Below each map stand its lowest and its highest value. The
    maps of the predicted class are drawn where it is wrong.

    Args:
        images: [N, 3, H, W] in 0..1.
        labels: [N] true classes.
        predictions: [N] predicted classes.
        class_names: The names.
        columns: The methods.
        title: First line of the picture.
        what: Which images these are.
    """
    wrong = [label != predicted for label, predicted in zip(labels, predictions, strict=True)]
    maps = 4 if any(wrong) else 2
    block = maps * (SIDE + GAP) + 3 * GAP
    width = max(2 * MARGIN + 2 * SIDE + GAP + len(columns) * block, 8.0)
    height = HEAD + COLUMN_HEAD + len(images) * (SIDE + CAPTION) + MARGIN
    notes = f"{what} · dark: low, bright: high · cosines: one color scale for each row; gradients: one for each map"
    figure, axes = new_page(width, height, fitted(title, width - 2 * MARGIN, 12, "bold"), notes)
    names = [" ".join(name.replace("_", " ").split()) or name for name in class_names]
    for number, column in enumerate(columns):
        _draw_head(axes, column.title, MARGIN + 2 * SIDE + 2 * GAP + number * block, maps)
    for row, image in enumerate(images):
        top = HEAD + COLUMN_HEAD + row * (SIDE + CAPTION)
        true, predicted = names[labels[row]], names[predictions[row]]
        _draw_image(axes, image, true, predicted if wrong[row] else None, top)
        for number, column in enumerate(columns):
            shown = [column.true[0, row], column.true[1, row]]
            shown += [column.predicted[0, row], column.predicted[1, row]] if wrong[row] else []
            left = MARGIN + 2 * SIDE + 2 * GAP + number * block
            _draw_maps(axes, image, shown, left, top, shared=column.shared)
    return figure


def _draw_head(axes: Axes, title: str, left: float, maps: int) -> None:
    draw_text(axes, left, HEAD, title, size=9, weight="bold")
    step = SIDE + GAP
    for place, text in enumerate(("true class", "predicted class, if wrong")[: maps // 2]):
        draw_text(axes, left + 2 * place * step, HEAD + 0.25, text, size=8)
    for place in range(maps):
        draw_text(axes, left + place * step, HEAD + 0.48, ("before", "after")[place % 2], size=8, color=GREY)


def _draw_image(axes: Axes, image: Images, true: str, predicted: str | None, top: float) -> None:
    left = MARGIN + SIDE
    for line, (text, style) in enumerate(
        [(true, {"weight": "bold"}), ("right" if predicted is None else f"as: {predicted}", {})]
    ):
        shown = fitted(text, SIDE - GAP, 7)
        draw_text(axes, MARGIN, top + 0.2 + 0.2 * line, shown, size=7, **style)
    draw_pixels(axes, _pixels(image), left, top, SIDE, SIDE)
    edge = {"edgecolor": RIGHT, "linewidth": 1.5} if predicted is None else {"edgecolor": WRONG, "linewidth": 3.0}
    draw_frame(axes, left, top, SIDE, **edge)


def _draw_maps(axes: Axes, image: Images, maps: Sequence[Maps], left: float, top: float, *, shared: bool) -> None:
    for place, values in enumerate(maps):
        x, scale = left + place * (SIDE + GAP), maps if shared else [values]
        low, high = min(other.min() for other in scale), max(other.max() for other in scale)
        draw_pixels(axes, _overlaid(image, (values - low) / max(high - low, 1e-12)), x, top, SIDE, SIDE)
        form = ".2f" if shared else ".2g"
        text = f"{values.min():{form}} to {values.max():{form}}"
        draw_text(axes, x, top + SIDE + 0.03, text, size=6, color=GREY)


def _overlaid(image: Images, values: Maps) -> npt.NDArray[np.float32]:
    """Return the gray image [H, W, 3] with a map [h, w] of values in 0..1 over it, a square for each patch."""
    height, width = image.shape[-2:]
    rows = np.arange(height) * values.shape[0] // height
    cols = np.arange(width) * values.shape[1] // width
    heat = COLORS(np.nan_to_num(values))[rows][:, cols, :3]
    gray = _pixels(image).mean(axis=-1, keepdims=True)
    return (OPACITY * heat + (1 - OPACITY) * gray).astype(np.float32)


def _pixels(image: Images) -> npt.NDArray[np.float32]:
    return np.clip(np.nan_to_num(np.moveaxis(image, 0, -1)), 0.0, 1.0).astype(np.float32)
