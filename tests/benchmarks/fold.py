"""Folding and sketching one batch of wide features, against reading it once."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lightning_sim.sketch import Sketch
from lightning_sim.sketch.folding import fold
from tests.benchmarks.figure import Figure, ratio_figure
from tests.benchmarks.settings import Settings
from tests.benchmarks.timing import interleaved

__all__ = ["measure"]


def measure(settings: Settings) -> Iterator[Figure]:
    """M = 1024, k = 1024, float32; on CUDA also larger than the cache, and as a share of the bandwidth."""
    yield from _against_copy(128, settings, torch.float32, bar=2.0)
    if settings.cuda:
        for dtype in (torch.float32, torch.bfloat16):
            yield from _against_copy(2048, settings, dtype)


def _against_copy(batch: int, settings: Settings, dtype: torch.dtype, bar: float | None = None) -> Iterator[Figure]:
    width = settings.choose(tiny=4096, quick=65536, full=65536)
    x = torch.randn(batch, width, device=settings.device).to(dtype)
    copied, ids, sketch = torch.empty_like(x), torch.arange(batch), Sketch(1024, 1024)
    rounds = interleaved(
        {
            "copy_": lambda: copied.copy_(x),
            "update": lambda: sketch.update(x, ids),
            "fold": lambda: fold(x, 1024, 0, torch.float32),
            "sum": lambda: x.sum(),
        },
        settings.choose(tiny=2, quick=15, full=31),
        device=settings.device,
        warm_up=3,
    )
    of = f"({batch} x {width}) {str(dtype).removeprefix('torch.')}"
    yield ratio_figure(f"sketch update of {of} / copy_", rounds, "update", "copy_", bar=bar)
    yield ratio_figure(f"fold alone of {of} / copy_", rounds, "fold", "copy_")
    yield ratio_figure(f"sum of {of} / copy_", rounds, "sum", "copy_")
    if settings.cuda and bar is None:
        # A copy reads and writes, the fold only reads.
        share = ratio_figure(f"bandwidth of the fold of {of} / of copy_", rounds, "copy_", "fold", bar=0.6)
        share.at_least = True
        share.value = share.value / 2 if share.value is not None else None
        share.spread = (share.spread[0] / 2, share.spread[1] / 2) if share.spread else None
        yield share
