"""The monitored pass over the probe, against the same forwards (and gradients) without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_sim.probe.gradients import expected_loss
from tests.benchmarks.figure import Figure, ratio_figure
from tests.benchmarks.settings import Settings
from tests.benchmarks.timing import Rounds, interleaved
from tests.benchmarks.workloads import NETWORKS, Workload, workload

__all__ = ["features", "gradients"]

FEATURE_BARS = {"ResNet-18": 1.05, "MLP": 1.25, "transformer": 1.10, "ResNet-50": 1.05}
GRADIENT_BARS = {"ResNet-18": 1.15, "MLP": 1.5}
EVERYTHING = ("features", "gradients", "features*gradients")


def features(settings: Settings) -> Iterator[Figure]:
    """Features of all measured layers over the bare forward under no_grad."""
    for name in [*NETWORKS, *(["ResNet-50"] if settings.cuda else [])]:
        load = workload(name, settings)
        rounds = _rounds(load, settings, Workload.forward, ("features",))
        yield ratio_figure(
            f"features, {name} ({len(load.layers)} layers) / forward",
            rounds,
            "monitored",
            "bare",
            bar=FEATURE_BARS[name],
            note=f"N = {len(load.inputs)}, batch {min(load.batch_size, len(load.inputs))}",
        )


def gradients(settings: Settings) -> Iterator[Figure]:
    """Features, gradients and their product over the forward and the gradients alone."""
    for name, bar in GRADIENT_BARS.items():
        load = workload(name, settings, settings.choose(tiny=None, quick=128, full=None))
        rounds = _rounds(load, settings, forward_and_gradients, EVERYTHING)
        yield ratio_figure(
            f"features, gradients and product, {name} / forward and gradients",
            rounds,
            "monitored",
            "bare",
            bar=bar,
            note=f"N = {len(load.inputs)}, batch {min(load.batch_size, len(load.inputs))}",
        )


def forward_and_gradients(load: Workload) -> None:
    """The expected loss's gradient with respect to the outputs of the measured layers, and nothing kept of it."""
    objective = expected_loss()
    outputs: list[Tensor] = []
    modules = dict(load.network.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for name in load.layers
    ]
    try:
        for _, batch in load.probe().batches():
            torch.autograd.grad(objective(load.network(batch[0]), batch), outputs)
            outputs.clear()
    finally:
        for handle in handles:
            handle.remove()


def _rounds(
    load: Workload, settings: Settings, bare: Callable[[Workload], object], representations: Sequence[str]
) -> Rounds:
    bare(load.of(load.batch_size))
    monitored = load.monitored_pass(load.runner(representations))
    monitored()  # makes the memory that later passes use again
    contenders = {"bare": lambda: bare(load), "monitored": monitored}
    return interleaved(contenders, settings.rounds, device=load.device, warm_up=int(settings.cuda))
