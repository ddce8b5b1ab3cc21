"""CKA of all pairs and NBS of pairs of finished sketches, in seconds and against plain linear algebra of that size."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch

from lightning_sim.sketch import Sketch, centered_kernel_alignment_matrix
from tests.benchmarks.figure import Figure, ratio_figure
from tests.benchmarks.settings import Settings
from tests.benchmarks.timing import interleaved

__all__ = ["measure"]

LAYERS, BUCKETS, PROJECTIONS = 50, 1024, 1024


def measure(settings: Settings) -> Iterator[Figure]:
    """50 x 50 layers, M = k = 1024; the narrow ones exact, the wide ones in two folds."""
    layers = settings.choose(tiny=2, quick=LAYERS, full=LAYERS)
    pairs = settings.choose(tiny=1, quick=4, full=LAYERS)
    buckets = settings.choose(tiny=64, quick=BUCKETS, full=BUCKETS)
    for width, kind in ((PROJECTIONS, "unfolded"), (4 * PROJECTIONS, "folded")):
        mine, theirs = (_sketches(layers, width, buckets, seed, settings.device) for seed in (0, 1))
        yield from _cka(mine, theirs, kind, settings)
        yield from _nbs(mine[:pairs], theirs[:pairs], kind, settings)


def _cka(mine: list[Sketch], theirs: list[Sketch], kind: str, settings: Settings) -> Iterator[Figure]:
    layers, buckets, folds = len(mine), mine[0].num_buckets, 2 if kind == "folded" else 1
    # Grams of all sketches, and their inner products.
    operations = 2 * layers * 2 * buckets**2 * PROJECTIONS + layers**2 * folds * 2 * buckets**2
    side = round((operations / 2) ** (1 / 3))
    x, y = torch.randn(2, side, side, device=settings.device)
    name = f"CKA of {layers} x {layers} {kind} sketches"
    note = f"torch.mm of ({side} x {side}) has as many operations"
    yield from _against(name, lambda: centered_kernel_alignment_matrix(mine, theirs), lambda: torch.mm(x, y), settings,
                        "torch.mm", bar=3.0, whole=layers == LAYERS, note=note)  # fmt: skip


def _nbs(mine: list[Sketch], theirs: list[Sketch], kind: str, settings: Settings) -> Iterator[Figure]:
    pairs = len(mine)
    x = torch.randn(mine[0].num_buckets, PROJECTIONS, dtype=torch.float64, device=settings.device)
    yield from _against(
        f"NBS of {pairs} pairs of {kind} sketches",
        lambda: [a.nbs(b) for a, b in zip(mine, theirs, strict=True)],
        lambda: [torch.linalg.svdvals(x) for _ in range(pairs)],
        settings,
        "float64 svdvals",
        bar=20.0 * pairs / LAYERS,
        whole=True,
        note=f"as {20 * pairs / LAYERS:g} s for {pairs} pairs is 20 s for {LAYERS}",
    )


def _against(
    name: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    settings: Settings,
    what: str,
    *,
    bar: float,
    whole: bool,
    note: str = "",
) -> Iterator[Figure]:
    rounds = interleaved({"ours": ours, what: reference}, settings.rounds, device=settings.device)
    yield ratio_figure(f"{name} / {what}", rounds, "ours", what, note=note)
    seconds = rounds.seconds["ours"]
    yield Figure(
        name,
        statistics.median(seconds),
        unit="s",
        bar=bar if whole else None,
        spread=(min(seconds), max(seconds)),
        note=note,
    )


def _sketches(count: int, width: int, buckets: int, seed: int, device: torch.device) -> list[Sketch]:
    generator = torch.Generator(device).manual_seed(seed)
    ids = torch.arange(buckets)
    sketches = []
    for _ in range(count):
        sketch = Sketch(buckets, PROJECTIONS)
        sketch.update(torch.randn(buckets, width, generator=generator, device=device), ids)
        sketches.append(sketch)
    return sketches
