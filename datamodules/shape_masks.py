"""Silhouettes of the 30 classes of the embedded data set, as functions of a pixel's place in the shape's frame.

A mask takes coordinates x (right) and y (up), in which the shape fills the disc or the square of radius 1, and a
variation in [0, 1]. The three broadcast against each other; the result is a boolean tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Mask = Callable[[Tensor, Tensor, Tensor], Tensor]


def _polygon(x: Tensor, y: Tensor, sides: int, radius: float) -> Tensor:
    sector = 2 * math.pi / sides
    angle = torch.remainder(torch.atan2(x, y) + sector / 2, sector) - sector / 2
    return torch.hypot(x, y) * torch.cos(angle) < radius * math.cos(sector / 2)


def _star(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    sector = 2 * math.pi / 5
    angle = (torch.remainder(torch.atan2(x, y) + sector / 2, sector) - sector / 2).abs()
    radius = torch.hypot(x, y)
    along, across = radius * torch.cos(angle), radius * torch.sin(angle)
    inner = 0.38 + 0.08 * variation
    notch_along, notch_across = inner * math.cos(sector / 2), inner * math.sin(sector / 2)
    return (1 - along) * notch_across > across * (1 - notch_along)


def _ring(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    radius = torch.hypot(x, y)
    return (radius < 0.95) & (radius > 0.55 + 0.12 * variation)


def _cross(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    thin, long = torch.minimum(x.abs(), y.abs()), torch.maximum(x.abs(), y.abs())
    return (thin < 0.22 + 0.1 * variation) & (long < 0.95)


def _spiral(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    radius = torch.hypot(x, y)
    turn = torch.atan2(y, x) / (2 * math.pi)
    return (radius < 1) & (torch.remainder(radius * (2 + 0.3 * variation) - turn, 1.0) < 0.5)


def _heart(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    x, y = 1.25 * x, 1.25 * y + 0.15
    return (x**2 + y**2 - 1) ** 3 < x**2 * y**3


def _arrow(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    shaft = (y.abs() < 0.16 + 0.08 * variation) & (x > -0.95) & (x < 0.2)
    return shaft | ((x > 0.1) & (y.abs() < (0.95 - x) * 0.85))


def _flower(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    radius = torch.hypot(x, y)
    petals = 0.65 + 0.33 * torch.cos(5 * torch.atan2(x, y))
    return (radius < petals) & (radius > 0.15 + 0.06 * variation)


def _gear(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    radius = torch.hypot(x, y)
    teeth = torch.where(torch.cos(9 * torch.atan2(x, y)) > 0, 0.97, 0.72)
    return (radius < teeth) & (radius > 0.3 + 0.1 * variation)


def _corner(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    inside = torch.maximum(x.abs(), y.abs()) < 0.85
    return inside & (torch.minimum(x, y) < -0.35 + 0.15 * variation)


def _hammer(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    handle = (x.abs() < 0.12 + 0.06 * variation) & (y > -0.95) & (y < 0.5)
    return handle | ((x.abs() < 0.75) & ((y - 0.62).abs() < 0.28))


def _target(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    radius = torch.hypot(x, y)
    return (radius < 0.28 + 0.08 * variation) | ((radius < 0.95) & (radius > 0.62))


def _asterisk(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    radius = torch.hypot(x, y)
    return (radius < 0.98) & (radius * torch.sin(3 * torch.atan2(x, y)).abs() < 0.25 + 0.12 * variation)


def _frame(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    distance = torch.maximum(x.abs(), y.abs())
    return (distance < 0.88) & (distance > 0.52 + 0.12 * variation)


def _patch(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) < 1


def _checkerboard(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    cells = 1.8 + 0.5 * variation
    return _patch(x, y) & (torch.remainder(torch.floor(x * cells) + torch.floor(y * cells), 2.0) < 1)


def _dots(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    cells = 1.5 + 0.4 * variation
    across, along = torch.remainder(x * cells, 1.0) - 0.5, torch.remainder(y * cells, 1.0) - 0.5
    return _patch(x, y) & (torch.hypot(across, along) < 0.32)


def _grid(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    cells = 1.5 + 0.4 * variation
    across, along = torch.remainder(x * cells + 0.5, 1.0), torch.remainder(y * cells + 0.5, 1.0)
    return _patch(x, y) & (((across - 0.5).abs() < 0.17) | ((along - 0.5).abs() < 0.17))


def _zigzag(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    wave = (torch.remainder(x * (1.5 + 0.3 * variation), 1.0) - 0.5).abs()
    return _patch(x, y) & (torch.remainder(y * 1.6 + 1.3 * wave, 1.0) < 0.48)


def _bricks(x: Tensor, y: Tensor, variation: Tensor) -> Tensor:
    rows = y * (2.0 + 0.4 * variation)
    columns = x * 1.1 + 0.5 * torch.remainder(torch.floor(rows), 2.0)
    mortar = (torch.remainder(rows, 1.0) < 0.24) | (torch.remainder(columns, 1.0) < 0.13)
    return _patch(x, y) & ~mortar


MASKS: dict[str, Mask] = {
    "circle": lambda x, y, variation: torch.hypot(x, y) < 0.9,
    "ring": _ring,
    "square": lambda x, y, variation: torch.maximum(x.abs(), y.abs()) < 0.8,
    "triangle": lambda x, y, variation: _polygon(x, y + 0.15, 3, 1.1),
    "star": _star,
    "cross": _cross,
    "crescent": lambda x, y, variation: (torch.hypot(x, y) < 0.95) & (torch.hypot(x - 0.45, y) > 0.7 + 0.1 * variation),
    "spiral": _spiral,
    "heart": _heart,
    "arrow": _arrow,
    "hexagon": lambda x, y, variation: _polygon(x, y, 6, 0.95),
    "diamond": lambda x, y, variation: x.abs() / (0.5 + 0.12 * variation) + y.abs() < 1,
    "flower": _flower,
    "gear": _gear,
    "bar": lambda x, y, variation: (x.abs() < 1) & (y.abs() < 0.17 + 0.1 * variation),
    "ellipse": lambda x, y, variation: torch.hypot(x, y / (0.48 + 0.12 * variation)) < 1,
    "semicircle": lambda x, y, variation: (torch.hypot(x, y + 0.4) < 0.95) & (y > -0.4),
    "corner": _corner,
    "hammer": _hammer,
    "chevron": lambda x, y, variation: ((y + x.abs() - 0.45).abs() < 0.26 + 0.1 * variation) & (x.abs() < 0.9),
    "hourglass": lambda x, y, variation: (x.abs() < 0.8 * y.abs() + 0.04 + 0.06 * variation) & (y.abs() < 0.9),
    "target": _target,
    "asterisk": _asterisk,
    "frame": _frame,
    "stripes": lambda x, y, variation: _patch(x, y) & (torch.remainder(y * (2 + 0.5 * variation), 1.0) < 0.5),
    "checkerboard": _checkerboard,
    "dots": _dots,
    "grid": _grid,
    "zigzag": _zigzag,
    "bricks": _bricks,
}
