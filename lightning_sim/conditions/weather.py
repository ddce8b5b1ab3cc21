"""What lies between the camera and the scene: fog, frost, snow, drops, and light."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sim.conditions.blur import clipped_zoom, gaussian, motion
from lightning_sim.conditions.draws import Draws

__all__ = ["brightness", "fog", "frost", "snow", "spatter"]

_FROST = (0.82, 0.91, 1.0)  # red, green, blue


def _clouds(draws: Draws, size: int, decay: float) -> Tensor:
    """Heights from 0 to 1, (n, size, size), that repeat at the border; by diamonds and squares, each level rougher.

    Args:
        draws: of the samples.
        size: a power of two.
        decay: how much flatter every level is than the one before.
    """
    heights = draws.uniform(1, 1) * 0
    rough = 1.0

    while heights.shape[1] < size:
        noise = rough * draws.uniform(3, *heights.shape[1:], low=-1, high=1)
        below, right = heights.roll(-1, 1), heights.roll(-1, 2)
        middles = (heights + below + right + below.roll(-1, 2)) / 4 + noise[:, 0]
        # A point on an edge lies between two corners and two middles.
        above = (heights + right + middles + middles.roll(1, 1)) / 4 + noise[:, 1]
        beside = (heights + below + middles + middles.roll(1, 2)) / 4 + noise[:, 2]
        upper, lower = torch.stack((heights, above), 3).flatten(2), torch.stack((beside, middles), 3).flatten(2)
        heights = torch.stack((upper, lower), 2).flatten(1, 2)
        rough /= decay**2  # as the published code, which multiplies by its roughness twice
    heights = heights - heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True)


def _power(size: float) -> int:
    return int(2 ** max(round(math.log2(size)), 1))


def fog(images: Tensor, parameters: tuple[float, float, float], draws: Draws, unit: float) -> Tensor:
    """Clouds of this thickness and smoothness before the picture, of which they show a part.

    The last parameter is how many times the picture's size the clouds are.
    """
    thick, decay, larger = parameters
    height, width = images.shape[2:]
    size = max(_power(larger * min(height, width)), int(2 ** math.ceil(math.log2(max(height, width)))))
    clouds = _clouds(draws, size, decay)[:, None, :height, :width]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + thick * clouds) * brightest / (brightest + thick)


def frost(images: Tensor, parameters: tuple[float, float], draws: Draws, unit: float) -> Tensor:
    """Ice crystals over the picture: ridges of generated clouds; the published code takes photographs of frost."""
    kept, ice = parameters
    height, width = images.shape[2:]
    size = int(2 ** math.ceil(math.log2(max(height, width))))
    ridges = 1 - (2 * _clouds(draws, 2 * size, 1.3)[:, None, :height, :width] - 1).abs()
    colour = torch.tensor(_FROST if images.shape[1] == 3 else (sum(_FROST) / 3,)).view(1, -1, 1, 1)
    return kept * images + ice * colour * ridges


def snow(images: Tensor, parameters: tuple[float, ...], draws: Draws, unit: float) -> Tensor:
    """Flakes drawn out by the wind, before a picture that is whitened.

    Parameters: mean and deviation of the noise, its zoom, the threshold above which it is a flake, radius and deviation
    of the motion, share of the picture that is not whitened.
    """
    mean, deviation, zoom, least, radius, sigma, kept = parameters
    flakes = clipped_zoom(mean + deviation * draws.normal(1, *images.shape[2:]), zoom)
    flakes = torch.where(flakes < least, 0, flakes).clamp(0, 1)
    flakes = motion(flakes, radius * unit, sigma * unit, draws.uniform(low=-135, high=-45))
    whitened = torch.maximum(images, _luminance(images) * 1.5 + 0.5)
    return kept * images + (1 - kept) * whitened + flakes + flakes.flip(2, 3)


def spatter(images: Tensor, parameters: tuple[float, ...], draws: Draws, unit: float) -> Tensor:
    """Drops of mud: where smoothed noise is above a threshold.

    Parameters: mean and deviation of the noise, deviation of its blur, the threshold, deviation of the drops' borders.
    """
    mean, deviation, sigma, least, border = parameters
    noise = gaussian(mean + deviation * draws.normal(1, *images.shape[2:]), sigma * unit)
    drops = gaussian((noise > least).float(), border * unit)
    drops = torch.where(drops < 0.8, 0, drops)
    mud = torch.tensor((63, 42, 20) if images.shape[1] == 3 else (63,)).view(1, -1, 1, 1) / 255
    return images * (1 - drops) + mud * drops


def brightness(images: Tensor, more: float, draws: Draws, unit: float) -> Tensor:
    """More of the value in hue, saturation and value: of the largest channel, whose proportions to others stay."""
    value = images.amax(1, keepdim=True)
    brighter = (value + more).clamp(0, 1)
    return torch.where(value > 0, images * brighter / value.clamp_min(1e-12), brighter)


def _luminance(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * torch.tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(1, keepdim=True)
