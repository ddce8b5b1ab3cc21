"""Noise of single pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sim.conditions.draws import Draws

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise"]


def gaussian_noise(images: Tensor, deviation: float, draws: Draws, unit: float) -> Tensor:
    """Normal noise."""
    return images + deviation * draws.normal(*images.shape[1:])


def shot_noise(images: Tensor, photons: float, draws: Draws, unit: float) -> Tensor:
    """Poisson noise of so many photons at full brightness."""
    return draws.poisson(images * photons) / photons


def impulse_noise(images: Tensor, share: float, draws: Draws, unit: float) -> Tensor:
    """Black or white in this share of the values."""
    drawn, white = draws.uniform(*images.shape[1:]), draws.integers(0, 2, *images.shape[1:])
    return torch.where(drawn < share, white.to(images), images)
