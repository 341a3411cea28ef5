"""Procedural images of shapes and textures: the embedded domain, which needs no files.

The same classes are drawn in four domains. "source" is what the tiny CLIP of the demo is pre-trained on: colored shapes
on colored backgrounds. "xray", "satellite" and "stain" show the same classes under a real domain shift. Images are
drawn at 96 pixels and averaged to 48.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import check_one_of
from .shape_masks import MASKS

IMAGE_SIZE = 48
_CANVAS = 2 * IMAGE_SIZE

SHAPES: list[str] = list(MASKS)

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.12),
    "orange": (0.96, 0.52, 0.08),
    "yellow": (0.95, 0.88, 0.15),
    "green": (0.13, 0.62, 0.20),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.50, 0.15, 0.68),
    "pink": (0.96, 0.52, 0.74),
    "brown": (0.45, 0.27, 0.12),
    "white": (0.96, 0.96, 0.96),
    "grey": (0.52, 0.52, 0.52),
    "black": (0.05, 0.05, 0.05),
}


_PALETTE = torch.tensor(list(COLORS.values()))
_EARTH = torch.tensor(
    [
        (0.24, 0.36, 0.16),
        (0.38, 0.47, 0.22),
        (0.58, 0.52, 0.34),
        (0.49, 0.38, 0.26),
        (0.70, 0.64, 0.50),
        (0.16, 0.26, 0.32),
        (0.52, 0.52, 0.50),
    ]
)


def render(
    labels: Tensor, domain: str = "source", generator: Generator | None = None, colors: Tensor | None = None
) -> Tensor:
    """Draw one image per label.

    Args:
        labels: Positions in `SHAPES`, [B] int64, on the CPU.
        domain: One of `DOMAINS`.
        generator: Generator of everything random; None for torch's global generator.
        colors: Positions of the shapes' colors in `COLORS`, [B]; None to draw them. Only "source" uses them.

    Returns:
        Images [B, 3, 48, 48], uint8.

    Raises:
        DtrapError: The domain is unknown.
    """
    check_one_of("domain", domain, DOMAINS)
    if colors is None:
        colors = torch.randint(len(COLORS), labels.shape, generator=generator)
    images = DOMAINS[domain](labels, colors, generator)
    return F.avg_pool2d(images, 2).clamp(0, 1).mul(255).round().to(torch.uint8)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _pick(palette: Tensor, count: int, generator: Generator | None) -> Tensor:
    """Draw `count` colors [count, 3, 1, 1] of a palette, with a small offset each."""
    chosen = palette[torch.randint(len(palette), (count,), generator=generator)]
    return (chosen + _uniform(-0.05, 0.05, chosen.shape, generator))[..., None, None]


def _noise(count: int, channels: int, cells: int, generator: Generator | None) -> Tensor:
    """Return smooth noise in [0, 1], [count, channels, 96, 96], from `cells` by `cells` random values."""
    coarse = torch.rand((count, channels, cells, cells), generator=generator)
    return F.interpolate(coarse, size=_CANVAS, mode="bilinear", align_corners=True)


def _grain(images: Tensor, strength: float | Tensor, generator: Generator | None) -> Tensor:
    """Add Gaussian noise that is not averaged out by the reduction to 48 pixels."""
    count, channels = images.shape[:2]
    grain = torch.randn((count, channels, IMAGE_SIZE, IMAGE_SIZE), generator=generator)
    return images + strength * F.interpolate(grain, scale_factor=2.0, mode="nearest")


def _blur(images: Tensor, radius: int) -> Tensor:
    size = 2 * radius + 1
    for _ in range(2):
        images = F.avg_pool2d(images, size, stride=1, padding=radius, count_include_pad=False)
    return images


def _axes() -> tuple[Tensor, Tensor]:
    """Return the coordinates x [1, 1, 96] (right) and y [1, 96, 1] (up) of the canvas, in [-1, 1]."""
    steps = (torch.arange(_CANVAS) + 0.5) / _CANVAS * 2 - 1
    return steps[None, None, :], -steps[None, :, None]


def _silhouettes(labels: Tensor, generator: Generator | None, turn: float) -> Tensor:
    """Return masks [B, 1, 96, 96] of shapes in random poses: rotated by up to `turn` degrees, of different sizes."""
    count = len(labels)
    shape = (count, 1, 1)
    angle = _uniform(-turn, turn, shape, generator) * math.pi / 180
    radius = _uniform(0.5, 0.85, shape, generator)
    stretch = _uniform(0.87, 1.15, shape, generator)
    offset_x, offset_y = (_uniform(-0.2, 0.2, shape, generator) for _ in range(2))
    variation = torch.rand(shape, generator=generator)

    canvas_x, canvas_y = _axes()
    right, up = canvas_x - offset_x, canvas_y - offset_y
    x = (right * torch.cos(angle) + up * torch.sin(angle)) / (radius * stretch)
    y = (up * torch.cos(angle) - right * torch.sin(angle)) / (radius / stretch)
    masks = torch.empty(count, _CANVAS, _CANVAS)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        masks[rows] = MASKS[SHAPES[label]](x[rows], y[rows], variation[rows]).float()
    return masks[:, None]


def _discs(count: int, number: int, radius: tuple[float, float], generator: Generator | None) -> Tensor:
    """Return masks [number, count, 1, 96, 96] of one small disc or rod each, anywhere on the canvas."""
    shape = (number, count, 1, 1)
    canvas_x, canvas_y = _axes()
    right = canvas_x - _uniform(-1, 1, shape, generator)
    up = canvas_y - _uniform(-1, 1, shape, generator)
    angle = _uniform(0, math.pi, shape, generator)
    length = _uniform(*radius, shape, generator)
    width = length * _uniform(0.3, 1, shape, generator)
    along = (right * torch.cos(angle) + up * torch.sin(angle)) / length
    across = (up * torch.cos(angle) - right * torch.sin(angle)) / width
    return (along**2 + across**2 < 1).float()[:, :, None]


def _blend(below: Tensor, above: Tensor, mask: Tensor) -> Tensor:
    return below + mask * (above - below)


def _source(labels: Tensor, colors: Tensor, generator: Generator | None) -> Tensor:
    """Draw a shape in one of twelve colors on a flat or cloudy background of another, with distractors."""
    count = len(labels)
    column = (count, 1, 1, 1)
    other = (colors + torch.randint(1, len(COLORS), (count,), generator=generator)) % len(COLORS)
    jitter = _uniform(-0.06, 0.06, (2, count, 3, 1, 1), generator)
    ink = _PALETTE[colors][..., None, None] + jitter[0]
    paper = _PALETTE[other][..., None, None] + jitter[1]

    cloudiness = _uniform(0, 0.5, column, generator) * (torch.rand(column, generator=generator) < 0.6)
    images = paper + cloudiness * (_noise(count, 3, 4, generator) - 0.5)
    for disc in _discs(count, 3, (0.05, 0.2), generator):
        shown = disc * (torch.rand(column, generator=generator) < 0.4)
        images = _blend(images, _pick(_PALETTE, count, generator), shown)
    shade = 1 + 0.3 * (_noise(count, 1, 3, generator) - 0.5)
    images = _blend(images, ink * shade, _silhouettes(labels, generator, turn=35))
    return _grain(images, _uniform(0, 0.06, column, generator), generator)


def _xray(labels: Tensor, colors: Tensor, generator: Generator | None) -> Tensor:
    """Draw the shape as a bone, gray with a bright rim, among ribs, with vignette and noise, inverted half the time."""
    count = len(labels)
    column = (count, 1, 1, 1)
    shape = _silhouettes(labels, generator, turn=35)
    rim = 2 * (_blur(shape, 1) - _blur(shape, 4))
    canvas_x, canvas_y = (axis[None] for axis in _axes())
    tissue = 0.25 + 0.3 * _noise(count, 1, 5, generator)
    bow, spacing, phase = (_uniform(low, high, column, generator) for low, high in ((0.4, 0.5), (8, 9), (0, 0.8)))
    ribs = torch.sin(spacing * (canvas_y + bow * canvas_x**2) + phase).clamp(min=0)
    contrast = _uniform(0.3, 0.5, column, generator)
    images = tissue + _uniform(0.03, 0.1, column, generator) * ribs + contrast * rim
    distance = torch.hypot(canvas_x, canvas_y)
    images = images * (1 - _uniform(0.2, 0.45, column, generator) * distance**2).clamp(min=0)
    inverted = torch.rand(column, generator=generator) < 0.5
    images = torch.where(inverted, 1 - images, images)
    return _grain(images, _uniform(0.03, 0.08, column, generator), generator).expand(-1, 3, -1, -1)


def _land(first: Tensor, second: Tensor, generator: Generator | None) -> Tensor:
    """Return patches of two colors [B, 3, 1, 1] with fine texture, [B, 3, 96, 96]."""
    patches = ((_noise(len(first), 1, 7, generator) - 0.5) * 5 + 0.5).clamp(0, 1)
    return _blend(first, second, 0.4 * patches) * (1 + 0.5 * (_noise(len(first), 1, 32, generator) - 0.5))


def _satellite(labels: Tensor, colors: Tensor, generator: Generator | None) -> Tensor:
    """Draw the shape as a field or a lake seen from above: earth colors on earth colors, crossed by roads."""
    count = len(labels)
    column = (count, 1, 1, 1)
    different = torch.rand((count, len(_EARTH)), generator=generator).argsort(1)[:, :4].T
    earth = [_EARTH[chosen][..., None, None] for chosen in different]
    field, around = _land(earth[0], earth[1], generator), _land(earth[2], earth[3], generator)
    images = _blend(around, field, _silhouettes(labels, generator, turn=180))
    canvas_x, canvas_y = (axis[None] for axis in _axes())
    for _ in range(2):
        angle, offset = _uniform(0, math.pi, column, generator), _uniform(-0.9, 0.9, column, generator)
        road = (canvas_x * torch.cos(angle) + canvas_y * torch.sin(angle) - offset).abs() < 0.03
        images = _blend(images, torch.tensor(0.68), road.float())
    haze = _uniform(0, 0.3, column, generator)
    return _grain(_blend(images, torch.tensor(0.7), haze), 0.02, generator)


def _stain(labels: Tensor, colors: Tensor, generator: Generator | None) -> Tensor:
    """Draw the shape as stained tissue under a microscope: purple on pale pink, full of nuclei."""
    count = len(labels)
    column = (count, 1, 1, 1)
    slide = torch.tensor((0.93, 0.84, 0.90)).view(1, 3, 1, 1) - 0.12 * _noise(count, 1, 8, generator)
    tissue = torch.tensor((0.74, 0.48, 0.70)).view(1, 3, 1, 1) + _uniform(-0.08, 0.08, (count, 3, 1, 1), generator)
    mask = _blur(_silhouettes(labels, generator, turn=180), 1)
    density = _uniform(0.6, 1, column, generator) * (0.75 + 0.5 * (_noise(count, 1, 12, generator) - 0.5))
    images = _blend(slide, tissue, mask * density)
    nuclei = _discs(count, 24, (0.03, 0.07), generator).amax(0)
    images = _blend(images, torch.tensor((0.34, 0.18, 0.48)).view(1, 3, 1, 1), 0.8 * nuclei)
    return _grain(_blur(images, 1), 0.03, generator)


Draw = Callable[[Tensor, Tensor, Generator | None], Tensor]

DOMAINS: dict[str, Draw] = {"source": _source, "xray": _xray, "satellite": _satellite, "stain": _stain}
