"""Blurs: by lenses, rough glass, motion, and zooming while the picture is taken."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lightning_sim.conditions.draws import Draws

__all__ = ["clipped_zoom", "defocus_blur", "gaussian", "glass_blur", "motion", "motion_blur", "zoom_blur"]


def gaussian(images: Tensor, sigma: float, sideways: bool = True) -> Tensor:
    """Smoothed by a Gaussian, over four deviations; beyond the border the nearest pixel goes on.

    Args:
        images: (n, channels, height, width).
        sigma: the deviation, in pixels.
        sideways: also along the rows, not only along the columns.
    """
    reach = int(4 * sigma + 0.5)
    if reach == 0:
        return images
    places = torch.arange(-reach, reach + 1, dtype=torch.float32, device=images.device)
    weights = torch.exp(-((places / sigma) ** 2) / 2)
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)
    padded = functional.pad(images, (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded, weights, groups=images.shape[1]) if sideways else padded[..., reach:-reach]
    return functional.conv2d(across, weights.transpose(2, 3), groups=images.shape[1])


def defocus_blur(images: Tensor, parameters: tuple[float, float], draws: Draws, unit: float) -> Tensor:
    """A disk of this radius with a border smoothed by this deviation."""
    radius, border = parameters[0] * unit, parameters[1]
    reach = max(math.ceil(radius), 1)
    places = torch.arange(-reach - 1, reach + 2, device=images.device)
    disk = (places[:, None] ** 2 + places**2 <= radius**2).float()
    near = torch.exp(-((torch.tensor([-1.0, 0, 1], device=images.device) / border) ** 2) / 2)
    near = near / near.sum()
    disk = functional.conv2d((disk / disk.sum())[None, None], (near[:, None] * near)[None, None], padding=1)
    padded = functional.pad(images, [reach + 1] * 4, mode="reflect")
    return functional.conv2d(padded, disk.expand(images.shape[1], 1, -1, -1), groups=images.shape[1])


def glass_blur(images: Tensor, parameters: tuple[float, float, int, float], draws: Draws, unit: float) -> Tensor:
    """Pixels changed with near ones, so far and so often, between two Gaussian blurs.

    The last parameter is the share of the pixels that are; where it is all, as in the code for colours, the near pixel
    is copied, and else exchanged, and, as in the code for MNIST-C, only the columns are blurred.
    """
    sigma, far, times, share = parameters
    sigma, reach = sigma * unit, max(round(far * unit), 1)
    images = gaussian(images, sigma, share == 1).clone()
    count, height, width = len(images), images.shape[2], images.shape[3]
    samples = torch.arange(count, device=images.device)
    for _ in range(times):
        moves = draws.integers(-reach, reach, 2, height, width)
        moves = moves * (draws.uniform(1, height, width) < share)
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                down, right = (moves[:, axis, row, column] for axis in (0, 1))
                other = images[samples, :, row + down, column + right]
                if share < 1:
                    images[samples, :, row + down, column + right] = images[:, :, row, column].clone()
                images[:, :, row, column] = other
    return gaussian(images, sigma, share == 1)


def motion(images: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Smeared in one direction for each sample, with weights that fall like half a Gaussian over twice the radius."""
    weights = torch.exp(-((torch.arange(2 * math.ceil(radius) + 1) / sigma) ** 2) / 2)
    weights = weights / weights.sum()
    radians = torch.deg2rad(degrees)
    rows, columns = torch.arange(images.shape[2]), torch.arange(images.shape[3])
    samples, channels = torch.arange(len(images))[:, None, None, None], torch.arange(images.shape[1])[:, None, None]
    blurred = torch.zeros_like(images)
    for step, weight in enumerate(weights.tolist()):
        down, right = (torch.ceil(step * way - 0.5).long() for way in (radians.sin(), radians.cos()))
        at = (rows + down[:, None]).clamp(0, len(rows) - 1), (columns + right[:, None]).clamp(0, len(columns) - 1)
        blurred += weight * images[samples, channels, at[0][:, None, :, None], at[1][:, None, None, :]]
    return blurred


def motion_blur(images: Tensor, parameters: tuple[float, float], draws: Draws, unit: float) -> Tensor:
    """Smeared along a direction between -45 and 45 degrees."""
    return motion(images, parameters[0] * unit, parameters[1] * unit, draws.uniform(low=-45, high=45))


def clipped_zoom(images: Tensor, factor: float) -> Tensor:
    """The middle, enlarged to the whole picture."""
    height, width = images.shape[2:]
    inside = [math.ceil(size / factor) for size in (height, width)]
    top, left = (height - inside[0]) // 2, (width - inside[1]) // 2
    cut = images[:, :, top : top + inside[0], left : left + inside[1]]
    sizes = [max(round(size * factor), whole) for size, whole in zip(inside, (height, width), strict=True)]
    larger = functional.interpolate(cut, sizes, mode="bilinear", align_corners=True)
    top, left = (sizes[0] - height) // 2, (sizes[1] - width) // 2
    return larger[:, :, top : top + height, left : left + width]


def zoom_blur(images: Tensor, parameters: tuple[float, float], draws: Draws, unit: float) -> Tensor:
    """The mean over zooms from 1 to below the first parameter, in steps of the second."""
    factors = np.arange(1, *parameters).tolist()  # of which rounding puts 1.06 below 1.06, as in the published code
    return (images + torch.stack([clipped_zoom(images, factor) for factor in factors]).sum(0)) / (len(factors) + 1)
