"""What is drawn over a picture, and the picture redrawn by its edges."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from lightning_sim.conditions.blur import gaussian
from lightning_sim.conditions.draws import Draws

__all__ = ["canny_edges", "dotted_line", "stripe", "zigzag"]

_GRID = 28  # pixels of the pictures that lines were published for
_THICK = 2.3  # pixels to either side until a line has faded


def stripe(images: Tensor, parameters: None, draws: Draws, unit: float) -> Tensor:
    """The outer quarters inverted."""
    quarter = images.shape[3] // 4
    inverted = images.clone()
    for part in (slice(None, quarter), slice(images.shape[3] - quarter, None)):
        inverted[..., part] = 1 - images[..., part]
    return inverted


def dotted_line(images: Tensor, parameters: None, draws: Draws, unit: float) -> Tensor:
    """A line from the left to the right border, of dots as long as their distance."""
    ends = draws.integers(0, _GRID - 1, 2).float()
    line = _line(images, torch.zeros(len(images)), ends[:, 0], torch.full((len(images),), _GRID - 1.0), ends[:, 1])
    columns = _columns(images.shape[3])
    return images + line[:, None] * ((columns // 2).long() % 2 == 1)


def zigzag(images: Tensor, parameters: None, draws: Draws, unit: float) -> Tensor:
    """A line of teeth, two pixels long and high, from left to right."""
    start, rise = draws.integers(0, _GRID - 1), draws.integers(-5, 5)
    angle = torch.atan(rise / 23)
    length = 23 / angle.cos()
    corners = [(torch.zeros_like(angle), torch.zeros_like(angle))]
    corners += [(torch.full_like(angle, 4.0 * i + 2), torch.full_like(angle, 2.0 * (-1) ** i)) for i in range(6)]
    corners.append((length, corners[-1][1] / (2 * (length - 20))))
    turned = [(angle.cos() * c - angle.sin() * r + 2, angle.sin() * c + angle.cos() * r + start) for c, r in corners]
    drawn = images
    for begin, end in itertools.pairwise(turned):
        drawn = (drawn + _line(images, *begin, *end)[:, None]).clamp(0, 1)
    return drawn


def canny_edges(images: Tensor, parameters: None, draws: Draws, unit: float) -> Tensor:
    """Edges by Canny's method: where the smoothed picture changes most along its gradient, strongly or next to it.

    Deviation 1 of the smoothing, thresholds 0.1 and 0.2 of Sobel's gradient.
    """
    smooth = gaussian(images.mean(1, keepdim=True), max(unit, 0.5))
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    padded = torch.nn.functional.pad(smooth, [1] * 4, mode="replicate")
    right, down = torch.nn.functional.conv2d(padded, torch.stack((kernel, kernel.T))[:, None]).unbind(1)
    size = torch.hypot(right, down)
    # Two neighbours on either side, and how far the gradient points to the second of them.
    steep = down.abs() > right.abs()
    share = torch.where(steep, right.abs(), down.abs()) / torch.maximum(right.abs(), down.abs()).clamp_min(1e-12)
    same = (right * down) >= 0
    is_most = torch.ones_like(steep)
    for way in (1, -1):
        straight = torch.where(steep, _moved(size, way, 0), _moved(size, 0, way))
        towards = torch.where(
            same, _moved(size, way, way), torch.where(steep, _moved(size, way, -way), _moved(size, -way, way))
        )
        is_most &= size >= straight * (1 - share) + towards * share
    inside = torch.zeros_like(steep)
    inside[:, 1:-1, 1:-1] = True
    weak = is_most & inside & (size >= 0.1)
    found = weak & (size >= 0.2)
    for _ in range(weak[0].numel()):
        grown = weak & (torch.nn.functional.max_pool2d(found[:, None].float(), 3, 1, 1)[:, 0] > 0)
        if bool((grown == found).all()):
            break
        found = grown
    return found[:, None].float().expand_as(images)


def _moved(values: Tensor, down: int, right: int) -> Tensor:
    """At every place the value so many places further down and right."""
    return values.roll((-down, -right), (1, 2))


def _columns(size: int) -> Tensor:
    """Where columns lie on the grid that lines were published for."""
    return (torch.arange(size) + 0.5) * _GRID / size - 0.5


def _line(images: Tensor, c0: Tensor, r0: Tensor, c1: Tensor, r1: Tensor) -> Tensor:
    """A line between two points (column, row) for each sample, fading above and below it: (n, height, width)."""
    rows, columns = _columns(images.shape[2])[:, None], _columns(images.shape[3])
    c0, r0, c1, r1 = (value.float().view(-1, 1, 1) for value in (c0, r0, c1, r1))
    on_line = r0 + (r1 - r0) / (c1 - c0) * (columns - c0)
    distance = (rows - on_line).abs().clamp(max=_THICK - 1e-6)
    line = (torch.log(1 - distance / _THICK) + 1).clamp(0, 1)
    return line * (columns >= c0.floor()) * (columns < c1.ceil())
