"""Pairs of representations with a known amount of shared signal."""

import torch

from lightning_sim.sketch import Sketch


def related(samples, width, *, rank, correlation, seed, dtype=torch.float32):
    """Two layers (samples, width) driven by `rank` latent variables each, with a mean far from zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    shared, private = draw(samples, rank), draw(samples, rank)
    other = correlation * shared + (1 - correlation**2) ** 0.5 * private
    scale = rank**-0.5
    return torch.relu(shared @ draw(rank, width) * scale) + 1, torch.relu(other @ draw(rank, width) * scale) - 2


def sketched(features, *, ids=None, batch_size=256, **settings):
    sketch = Sketch(**settings)
    ids = torch.arange(len(features)) if ids is None else ids
    for start in range(0, len(features), batch_size):
        sketch.update(features[start : start + batch_size], ids[start : start + batch_size])
    return sketch
