"""What happens to pictures in a computer: less contrast, larger pixels, compression."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lightning_sim.conditions.draws import Draws

__all__ = ["LUMINANCE", "contrast", "jpeg_compression", "pixelate"]

# The tables of annex K of ITU-T T.81, of luminance and of colour.
LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_COLOUR = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))  # and 99 elsewhere
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def contrast(images: Tensor, share: float, draws: Draws, unit: float) -> Tensor:
    """This share of the difference to the mean of each channel."""
    means = images.mean((2, 3), keepdim=True)
    return (images - means) * share + means


def pixelate(images: Tensor, share: float, draws: Draws, unit: float) -> Tensor:
    """Drawn with this share of the pixels along each side."""
    sizes = [max(int(size * share), 1) for size in images.shape[2:]]
    return _resized(_resized(images, sizes), images.shape[2:])


def _resized(images: Tensor, sizes: Sequence[int]) -> Tensor:
    """Every new pixel the mean of those whose middles it covers, as Pillow's box filter does; or the nearest one."""
    for axis, size in zip((2, 3), sizes, strict=True):
        ratio = images.shape[axis] / size
        middles = torch.arange(images.shape[axis], dtype=torch.float64) + 0.5
        away = (middles - ratio * (torch.arange(size)[:, None] + 0.5)) / max(ratio, 1)
        covered = ((away > -0.5) & (away <= 0.5)).float()
        images = (covered / covered.sum(1, keepdim=True) @ images.movedim(axis, 2)).movedim(2, axis)
    return images


def jpeg_compression(images: Tensor, quality: float, draws: Draws, unit: float) -> Tensor:
    """Compressed as JPEG: cosines of 8 x 8 pixels rounded by the standard's tables, colours at half the size."""
    factor = (50 / quality if quality < 50 else 2 - quality / 50) * 1.0
    if images.shape[1] != 3:
        return _rounded(images * 255, torch.tensor(LUMINANCE).view(8, 8), factor) / 255
    height, width = images.shape[2:]
    even = functional.pad(images * 255, (0, width % 2, 0, height % 2), mode="replicate")
    to_ycc = torch.tensor(_TO_YCC)
    ycc = torch.einsum("ij,njhw->nihw", to_ycc, even) + torch.tensor([0.0, 128, 128]).view(1, 3, 1, 1)
    colour_table = torch.full((8, 8), 99)
    colour_table[:4, :4] = torch.tensor(_COLOUR)
    light = _rounded(ycc[:, :1], torch.tensor(LUMINANCE).view(8, 8), factor)
    colours = _rounded(functional.avg_pool2d(ycc[:, 1:], 2), colour_table, factor)
    colours = functional.interpolate(colours, scale_factor=2, mode="bilinear", align_corners=False)
    ycc = torch.cat((light, colours - 128), 1)
    return torch.einsum("ij,njhw->nihw", torch.linalg.inv(to_ycc), ycc)[..., :height, :width] / 255


def _rounded(values: Tensor, table: Tensor, factor: float) -> Tensor:
    """Values from 0 to 255, after the cosines of every block were rounded to multiples of the table's entries."""
    height, width = values.shape[2:]
    steps = (table * factor + 0.5).floor().clamp(1, 255).flatten()
    padded = functional.pad(values, (0, -width % 8, 0, -height % 8), mode="replicate")
    frequency, place = torch.arange(8.0)[:, None], torch.arange(8.0)
    cosines = torch.cos((2 * place + 1) * frequency * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    basis = torch.kron(cosines, cosines)  # (64, 64), orthogonal
    blocks = functional.unfold(padded.flatten(0, 1)[:, None] - 128, 8, stride=8)
    blocks = basis.T @ ((basis @ blocks / steps[:, None]).round() * steps[:, None])
    rebuilt = functional.fold(blocks, padded.shape[2:], 8, stride=8).view_as(padded) + 128
    return rebuilt[..., :height, :width].round().clamp(0, 255)
