"""Pictures that are moved and bent."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightning_sim.conditions.blur import gaussian
from lightning_sim.conditions.draws import Draws

__all__ = ["elastic_transform", "rotate", "scale", "shear", "translate"]


def shear(images: Tensor, angle: float, draws: Draws, unit: float) -> Tensor:
    """Sheared to the left or right by this angle, in radians."""
    angles = angle * draws.signs()
    return _turned(images, torch.ones_like(angles), -angles.sin(), torch.zeros_like(angles), angles.cos())


def rotate(images: Tensor, angle: float, draws: Draws, unit: float) -> Tensor:
    """Turned to the left or right by this angle, in radians."""
    angles = angle * draws.signs()
    return _turned(images, angles.cos(), -angles.sin(), angles.sin(), angles.cos())


def scale(images: Tensor, size: float, draws: Draws, unit: float) -> Tensor:
    """Smaller, by this factor."""
    factors = torch.full((len(images),), 1 / size)
    return _turned(images, factors, 0 * factors, 0 * factors, factors)


def translate(images: Tensor, pixels: float, draws: Draws, unit: float) -> Tensor:
    """Moved so far along both axes, either way."""
    rows, columns = _places(images)
    moves = pixels * unit * draws.signs(2)
    return _sampled(images, rows + moves[:, 0, None, None], columns + moves[:, 1, None, None], "zeros")


def elastic_transform(images: Tensor, parameters: tuple[float, float, float], draws: Draws, unit: float) -> Tensor:
    """Three points moved, which gives an affine map, then every pixel by a smooth field.

    Parameters, as shares of the size: how far the field moves pixels before it is smoothed, the deviation of the
    smoothing, how far the points move.
    """
    height, width = images.shape[2:]
    size = min(height, width)
    far, sigma, moves = (share * size for share in parameters)
    rows, columns = _places(images)
    beyond = int(4 * sigma + 1)
    mirrored = draws.uniform(2, height, width, low=-1, high=1)[:, :, _mirrored(height, beyond)]
    field = gaussian(mirrored[..., _mirrored(width, beyond)], sigma) * far
    field = field[:, :, beyond : beyond + height, beyond : beyond + width]
    middle, third = torch.tensor([height // 2, width // 2]), size // 3
    points = (middle + third * torch.tensor([[1, 1], [1, -1], [-1, -1]])).float()
    moved = points + draws.uniform(3, 2, low=-moves, high=moves)
    ones = torch.ones(len(images), 3, 1)
    back = torch.linalg.solve(torch.cat((moved, ones), 2), points.expand(len(images), -1, -1))  # (n, 3, 2)
    at = torch.stack((rows, columns, torch.ones_like(rows)), 3) @ back[:, None]
    outside = "reflection" if images.shape[1] == 3 else "zeros"
    mapped = _sampled(images, at[..., 0], at[..., 1], outside)  # first, as published: each interpolation blurs
    return _sampled(mapped, rows + field[:, 0], columns + field[:, 1], outside)


def _mirrored(size: int, beyond: int) -> Tensor:
    """Indices of so many places, and beyond both borders of those that lie as far inside."""
    places = torch.arange(-beyond, size + beyond) % (2 * size)
    return torch.minimum(places, 2 * size - 1 - places)


def _turned(images: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Every pixel from where the matrix puts it, about the middle: column = a x + b y, row = c x + d y."""
    rows, columns = _places(images)
    middle = (images.shape[2] - 1) / 2, (images.shape[3] - 1) / 2
    y, x = rows - middle[0], columns - middle[1]
    a, b, c, d = (entry.view(-1, 1, 1) for entry in (a, b, c, d))
    return _sampled(images, c * x + d * y + middle[0], a * x + b * y + middle[1], "zeros")


def _places(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every pixel, (1, height, width) each."""
    rows, columns = torch.arange(images.shape[2]).float(), torch.arange(images.shape[3]).float()
    return rows.view(1, -1, 1).expand(1, -1, len(columns)), columns.view(1, 1, -1).expand(1, len(rows), -1)


def _sampled(images: Tensor, rows: Tensor, columns: Tensor, beyond: str) -> Tensor:
    """What lies at these places (n, height, width), between pixels in proportion."""
    sizes = (max(size - 1, 1) for size in images.shape[2:])
    y, x = (2 * at / size - 1 for at, size in zip((rows, columns), sizes, strict=True))
    grid = torch.stack((x, y), 3).expand(len(images), -1, -1, -1)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode=beyond, align_corners=True)
