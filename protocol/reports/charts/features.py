"""A map of image and text features before and after the training: t-SNE or principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .chart import Chart
from .drawing import COLORS, GRAY, INK, MUTED, TEXT, Sheet, fitted_line, say_empty, styled
from .words import Numbers, clean, counted, listed, number, numbers, sentences, unique

WIDTH, PANEL = 480.0, 216.0
MOST_COLORED = 10  # classes; more would not be told apart
# Neither color alone nor shape alone tells ten classes apart; both together do.
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
METHODS = ("auto", "t-sne", "pca")


@styled
def feature_map(
    before: Any,
    after: Any,
    is_query: Any,
    labels: Any,
    texts_before: Any,
    texts_after: Any,
    class_names: Sequence[str],
    *,
    method: str = "auto",
    title: str = "Image and text features",
) -> Chart:
    """Draw the features of one episode before and after the training, next to each other.

    Each side has a map of its own, so that places are not compared from one side to the other.

    Args:
        before: Image features [N, D] before the training.
        after: The same images after it.
        is_query: Whether an image is a query [N].
        labels: Class of each image [N], as a row of the texts.
        texts_before: Text feature of each class [W, D] before the training.
        texts_after: The same after it.
        class_names: Names of the W classes.
        method: "t-sne" (scikit-learn), "pca", or "auto": t-SNE where scikit-learn is installed.
        title: What the map is of.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(map(repr, METHODS))}")
    names, query = unique(class_names), np.ravel(np.asarray(is_query, dtype=bool))
    classes = np.ravel(np.asarray(labels, dtype=int))
    sides = [_side(images, texts, classes) for images, texts in ((before, texts_before), (after, texts_after))]
    embedding = _t_sne(method)
    rows = (min(len(names), MOST_COLORED) + 1) // 2
    sheet = Sheet(WIDTH, PANEL + 48 + 14 * rows)
    counts, used = [], []
    for place, ((images, texts, sound), when) in enumerate(zip(sides, ("before", "after"), strict=True)):
        points, way = _flat(np.concatenate([images, texts]), embedding)
        left = 8 + place * (WIDTH / 2)
        sheet.text(left, 4, f"{when} training", weight="bold")
        sheet.text(left + 94, 4, way, color=MUTED)
        axes = sheet.axes(left, 20, WIDTH / 2 - 16, PANEL)
        axes.set(xticks=[], yticks=[])
        _draw(axes, points[: len(images)], points[len(images) :], query[sound], classes[sound], len(names))
        counts.append(len(images))
        used.append(way)
    _legend(sheet, names, PANEL + 26)
    queries = f"{int(query.sum()):,} quer{'y' if query.sum() == 1 else 'ies'}"
    missing = sum(len(classes) - count for count in counts)
    alt = _alt(sides, query, classes, names, used)
    note = sentences(
        f"{counted(len(names), 'class text')}, {counted(int((~query).sum()), 'support image')} and {queries}",
        "Each side is a map of its own: compare distances within a side only",
        f"{counted(missing, 'feature')} not finite and left out" if missing else "",
        f"Only the first {MOST_COLORED} of {len(names)} classes have colors" if len(names) > MOST_COLORED else "",
    )
    return Chart(clean(title), sheet.svg(alt), alt, note, wide=True)


def principal_components(features: Numbers) -> tuple[Numbers, Numbers]:
    """Return the first two principal components [N, 2] and their shares of the variance.

    The sign of a component makes the largest of its loadings positive, so that it does not depend on the library.
    """
    centered = features - features.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centered, full_matrices=False)
    directions, sizes = directions[:2], sizes[:2]
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    points = centered @ (directions * np.where(signs == 0, 1, signs)[:, None]).T
    total = (centered**2).sum()
    shares = sizes**2 / total if total > 0 else np.zeros(len(sizes))
    lacking = 2 - points.shape[1]
    return np.pad(points, ((0, 0), (0, lacking))), np.pad(shares, (0, lacking))


def _side(images: Any, texts: Any, classes: Any) -> tuple[Numbers, Numbers, Any]:
    """Finite features scaled to length 1, and which images those are; texts that are not finite become NaN rows."""
    images, texts = np.atleast_2d(numbers(images)), np.atleast_2d(numbers(texts))
    if len(images) != len(classes):
        if images.size:
            raise ValueError(f"expected one label per image, got {len(classes)} labels and {len(images)} images")
        images = np.empty((0, texts.shape[1]))
    sound = np.isfinite(images).all(axis=1)
    return _unit(images[sound]), _unit(np.nan_to_num(texts)), sound


def _unit(features: Numbers) -> Numbers:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.divide(features, lengths, out=np.zeros_like(features), where=lengths > 0)


def _t_sne(method: str) -> Any:
    """scikit-learn's class; None where it is not asked for, or only asked for where it is installed."""
    if method == "pca":
        return None
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        if method == "auto":
            return None
        raise ValueError("t-SNE needs scikit-learn; install it with: pip install scikit-learn") from error
    return TSNE


def _flat(features: Numbers, embedding: Any) -> tuple[Numbers, str]:
    """Places [N, 2], and the way that they were found."""
    different = len(np.unique(features, axis=0)) if features.size else 0
    if different < 2:
        return np.zeros((len(features), 2)), "all equal"
    if embedding is not None and different > 4:
        perplexity = min(30.0, (len(features) - 1) / 3)
        options = {"init": "pca", "metric": "cosine", "method": "exact", "random_state": 0}
        points = embedding(perplexity=perplexity, **options).fit_transform(features)
        return np.asarray(points, dtype=np.float64), f"t-SNE, perplexity {perplexity:.0f}"
    points, shares = principal_components(features)
    return points, f"PCA, {100 * shares.sum():.0f} % of the variance"


def _draw(axes: Axes, images: Numbers, texts: Numbers, query: Any, classes: Any, way: int) -> None:
    if len(images) == 0:
        say_empty(axes)
        return
    for place in range(way):
        color, shape = _color(place), SHAPES[place % len(SHAPES)]
        style: dict[str, Any] = {"marker": shape, "linestyle": "none", "color": color}
        of_class = classes == place
        asked, shown = images[of_class & query], images[of_class & ~query]
        axes.plot(*asked.T, **style, markersize=3.6, markeredgewidth=0, alpha=0.55)
        axes.plot(*shown.T, **style, markersize=7, markeredgecolor=INK, markeredgewidth=1.1)
    for place, (x, y) in enumerate(texts):
        style = {"marker": "*", "linestyle": "none", "markersize": 13, "color": _color(place)}
        axes.plot([x], [y], markeredgecolor=INK, markeredgewidth=1, zorder=4, **style)
        if way <= MOST_COLORED:
            axes.annotate(str(place + 1), (x, y), (6, 4), textcoords="offset points", size=TEXT, weight="bold")
    axes.margins(0.08)


def _color(place: int) -> str:
    return COLORS[place % (len(COLORS) - 1)] if place < MOST_COLORED else GRAY


def _legend(sheet: Sheet, names: Sequence[str], top: float) -> None:
    key = {"linestyle": "none", "color": GRAY}
    middle = top + 7
    for x, words, style in (
        (12, "class text", {"marker": "*", "markersize": 11, "markeredgecolor": INK}),
        (92, "support image", {"marker": "o", "markersize": 7, "markeredgecolor": INK}),
        (192, "query", {"marker": "o", "markersize": 3.6, "markeredgewidth": 0, "alpha": 0.55}),
    ):
        sheet.line([x], [middle], **{**key, **style})
        sheet.text(x + 10, top + 1, words)
    for place, name in enumerate(names[:MOST_COLORED]):
        left, y = 12 + (place % 2) * WIDTH / 2, top + 16 + 14 * (place // 2)
        style = {"marker": SHAPES[place % len(SHAPES)], "markersize": 6, "markeredgewidth": 0}
        sheet.line([left], [y + 6], **{**key, **style, "color": _color(place)})
        sheet.text(left + 10, y, f"{place + 1}", weight="bold")
        sheet.text(left + 24, y, fitted_line(name, WIDTH / 2 - 44))


def _alt(sides: Sequence[Any], query: Any, classes: Any, names: Sequence[str], used: Sequence[str]) -> str:
    said = []
    for (images, texts, sound), when in zip(sides, ("before", "after"), strict=True):
        if len(images) == 0 or len(texts) == 0:
            said.append(f"{when.capitalize()} training: no features")
            continue
        own = classes[sound]
        cosines = images @ texts.T
        valid = (own >= 0) & (own < len(texts))
        own_cosine = cosines[np.flatnonzero(valid), own[valid]].mean() if valid.any() else float("nan")
        asked = query[sound] & valid
        right = (cosines[asked].argmax(axis=1) == own[asked]).sum()
        nearest = f"; {right} of {asked.sum()} queries nearest to their own text" if asked.any() else ""
        gap = float(np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0)))
        said.append(
            f"{when.capitalize()} training: mean cosine of an image with its class text {number(own_cosine, 3)}, "
            f"distance of the means of images and texts {number(gap, 3)}{nearest}"
        )
    return sentences(
        f"Map before and after the training ({'; '.join(dict.fromkeys(used))})",
        f"{counted(len(classes), 'image')}, {int((~query).sum())} support and {int(query.sum())} queries, and the "
        f"texts of {counted(len(names), 'class')}: {listed(list(names), 5)}",
        *said,
    )
