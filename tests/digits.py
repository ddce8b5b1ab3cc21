"""Features and logits of real digits, of a population large enough to draw samples from."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """1,797 images (n, 64) in [0, 1], and their labels (n,)."""
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images) / 16, torch.from_numpy(labels)


@functools.cache
def shifted_digits() -> tuple[Tensor, Tensor]:
    """16,173 images: every digit as it is, and moved by a pixel in eight directions."""
    images, labels = digits()
    moved = [images.view(-1, 8, 8).roll((i, j), (1, 2)).flatten(1) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return torch.cat(moved), labels.repeat(9)


def layer(x: Tensor, width: int, seed: int) -> Tensor:
    """A layer of an untrained network with ReLU."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = (
        torch.randn(*shape, generator=generator, dtype=x.dtype) for shape in ((x.shape[1], width), (width,))
    )
    return torch.relu(x @ weight / x.shape[1] ** 0.5 + 0.3 * bias)


@functools.cache
def features() -> dict[str, Tensor]:
    """Of the shifted digits: a first layer f, one on top of it h, a third layer k of another network."""
    images, _ = shifted_digits()
    f = layer(images, 40, seed=0)
    return {"f": f, "h": layer(f, 30, seed=1), "k": layer(layer(layer(images, 50, seed=2), 30, seed=3), 20, seed=4)}


@functools.cache
def logits() -> tuple[Tensor, Tensor]:
    """Of two readouts of the shifted digits, fitted to the digits as they are."""
    images, labels = digits()
    targets = 8 * torch.nn.functional.one_hot(labels, 10).to(images.dtype) - 4
    fitted = []
    for seed in (5, 6):
        inside = layer(images, 25, seed=seed)
        ridge = inside.T @ inside + 0.1 * torch.eye(25, dtype=images.dtype)
        readout = torch.linalg.solve(ridge, inside.T @ targets)
        fitted.append(layer(shifted_digits()[0], 25, seed=seed) @ readout)
    return fitted[0], fitted[1]
