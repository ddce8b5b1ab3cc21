"""How state, memory, synchronised bytes and time grow with samples, width, layers and ranks."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch import nn

from lightning_sim.sketch import Sketch
from tests.benchmarks.figure import Figure
from tests.benchmarks.live_bytes import peak_bytes
from tests.benchmarks.settings import Settings
from tests.benchmarks.synchronization import bytes_per_rank, state_bytes
from tests.benchmarks.timing import interleaved
from tests.benchmarks.workloads import Workload, workload

__all__ = ["measure"]


def measure(settings: Settings) -> Iterator[Figure]:
    yield from _synchronized(settings)
    yield from _extra_memory(settings)
    yield from _slope(settings)


def _synchronized(settings: Settings) -> Iterator[Figure]:
    """What a rank sends over the state of its sketches; beside it go four integers for every layer."""
    base = (2, 2048, 1024, 1)
    grown = [base, (2, 2048, 4096, 1), (2, 16384, 1024, 1), (8, 2048, 1024, 1)]
    grown += settings.choose(tiny=[], quick=[(2, 2048, 1024, 2)], full=[(2, 2048, 1024, 2), (2, 2048, 1024, 3)])
    for layers, width, num_samples, ranks in grown[: settings.choose(tiny=1, quick=9, full=9)]:
        sent, state = bytes_per_rank(layers, width, num_samples, ranks)
        yield Figure(
            f"bytes sent by a rank / state: {layers} layers, width {width}, N = {num_samples}, {ranks} ranks",
            sent / state,
            bar=1.001,
            note=f"state {state / 1e6:.2f} MB, {state / layers / 1e6:.2f} MB a layer",
        )


def _extra_memory(settings: Settings) -> Iterator[Figure]:
    """Peak of the monitored pass beyond that of the bare forward, over sketches and two batches of one layer."""
    layers, width, batch = settings.choose(tiny=(2, 64, 8), quick=(4, 16384, 128), full=(4, 16384, 128))
    for count, wide, samples in (
        (layers, width, 2 * batch),
        (layers, width, 8 * batch),
        (layers, width // 8, 2 * batch),
        (2 * layers, width, 2 * batch),
    ):
        network = _Wide(count, wide).to(settings.device)
        load = Workload("wide", network, torch.randn(samples, 3, device=settings.device), batch)
        yield _extra(load, batch * wide, f"{count} layers, width {wide}, N = {samples}")
    for name in ("ResNet-18", "MLP"):
        load = workload(name, settings, num_samples=2 * settings.choose(tiny=16, quick=64, full=128))
        batch = min(load.batch_size, len(load.inputs))
        widest = max(
            sketch.width for sketch in load.of(batch).runner().snapshot(load.network, load.layers).of().values()
        )
        yield _extra(load, batch * widest, name)


def _extra(load: Workload, elements: int, name: str) -> Figure:
    runner = load.runner()
    runner.snapshot(load.network, load.layers)  # signs of columns are kept from the first pass on
    sketches: list[Sketch] = []
    peak = peak_bytes(
        lambda: sketches.extend(
            runner.snapshot(load.network, load.layers, keep_logits=False).of().values()
        )
    )
    extra, state = peak - peak_bytes(load.forward), state_bytes(sketches)
    allowed = state + 2 * elements * torch.finfo(load.inputs.dtype).bits // 8
    return Figure(
        f"peak extra memory of a pass / (sketches + 2 batches of a layer): {name}",
        extra / allowed,
        bar=1.0,
        note=f"{extra / 1e6:.1f} MB, of which sketches {state / 1e6:.1f} MB",
    )


def _slope(settings: Settings) -> Iterator[Figure]:
    """Seconds per further sample of the monitored pass over those of the bare forward."""
    load = workload("ResNet-18", settings)
    few = load.of(max(len(load.inputs) // 4, 4))
    runs = {"few, bare": few.forward, "all, bare": load.forward}
    for name, part in (("few", few), ("all", load)):  # in sketches of one size
        runs[f"{name}, monitored"] = part.monitored_pass(part.runner(num_samples=len(load.inputs)))
        runs[f"{name}, monitored"]()
    few.forward()
    rounds = interleaved(runs, settings.rounds, device=settings.device, warm_up=int(settings.cuda))
    bare, monitored = (
        [b - a for a, b in zip(rounds.seconds[f"few, {kind}"], rounds.seconds[f"all, {kind}"], strict=True)]
        for kind in ("bare", "monitored")
    )
    ratios = [ours / theirs for ours, theirs in zip(monitored, bare, strict=True)]
    yield Figure(
        f"seconds per further sample, ResNet-18, N = {len(few.inputs)} to {len(load.inputs)}: monitored / bare",
        statistics.median(ratios),
        bar=1.05,
        spread=(min(ratios), max(ratios)),
        seconds=rounds.seconds,
    )


class _Wide(nn.Module):
    """Layers of any width without the weights that would hide what the monitor adds."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.Linear(3, width) for _ in range(layers))
        self.measured = [f"scales.{index}" for index in range(layers)]

    def forward(self, x):
        return torch.stack([layer(x).mean(1) for layer in self.scales], dim=1)
