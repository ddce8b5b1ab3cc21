"""Ours and other packages' way to the layer x layer CKA matrix of two networks, each by its documented interface."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn

from lightning_sim.measures import MEASURES, Pairs, Side
from tests.benchmarks.workloads import Workload, loader

__all__ = ["OURS", "PEERS", "Contender", "contenders"]

OURS = "lightning-sim"

Measure = Callable[[], Tensor]


@dataclass(frozen=True)
class Contender:
    """Attributes:
    name: of the distribution.
    version: None where it is not installed.
    minibatch: whether it claims the ratio of HSIC_1 summed over batches, rather than that of all samples.
    prepare: given the workload and the changed network, makes what is measured: a function that gives the matrix.
    """

    name: str
    version: str | None
    minibatch: bool
    prepare: Callable[[Workload, nn.Module], Measure]


def contenders() -> list[Contender]:
    """Ours first, and every known peer, installed or not."""
    return [Contender(OURS, version(OURS), False, _ours)] + [
        Contender(name, _version(name), True, _quiet(prepare)) for name, prepare in PEERS.items()
    ]


def _ours(load: Workload, changed: nn.Module) -> Measure:
    """At a later epoch: the reference was run once, before."""
    runner = load.runner()
    reference = runner.snapshot(load.network, load.layers)
    for sketch in reference.of().values():
        sketch.keep_grams = True  # as the monitor does, for the epochs to come
    pairs = Pairs({layer: layer for layer in load.layers})
    run = load.monitored_pass(runner, changed)

    def measure() -> Tensor:
        found = MEASURES["cka"].compare(Side(run(), runner), Side(reference, runner), pairs)
        (matrix,) = found.matrices
        return torch.from_numpy(matrix.values)

    return measure


def _pytorch_cka(load: Workload, changed: nn.Module) -> Measure:
    from cka import compute_cka

    batches = loader(load.inputs, load.batch_size)
    return lambda: compute_cka(
        changed, load.network, batches, layers=load.layers, device=load.device, progress=False
    )[0]


def _torch_cka(load: Workload, changed: nn.Module) -> Measure:
    from torch_cka import CKA

    batches = loader(load.inputs, load.batch_size)
    # Its hooks stay on the network.
    networks = (changed, copy.deepcopy(load.network))
    names = {"model1_name": "changed", "model2_name": "reference"}
    layers = {"model1_layers": load.layers, "model2_layers": load.layers}
    cka = CKA(*networks, **names, **layers, device=str(load.device))

    def measure() -> Tensor:
        cka.compare(batches, batches)
        return cka.export()["CKA"]

    return measure


def _ckatorch(load: Workload, changed: nn.Module) -> Measure:
    """It takes outputs (batch, positions, width) only, positions as samples, and gives the last batch's value."""
    from ckatorch import CKA

    batches = loader(load.inputs, load.batch_size)
    networks = (changed, copy.deepcopy(load.network))
    cka = CKA(*networks, load.layers, first_name="changed", second_name="reference", device=load.device)
    return lambda: cka(batches, epochs=1)


PEERS = {"pytorch-cka": _pytorch_cka, "torch-cka": _torch_cka, "ckatorch": _ckatorch}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _quiet(prepare: Callable[[Workload, nn.Module], Measure]) -> Callable[[Workload, nn.Module], Measure]:
    """Without the advice and progress bars of the peers, which take no part in what is measured."""

    @contextlib.contextmanager
    def quietly():
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield

    def prepared(load: Workload, changed: nn.Module) -> Measure:
        with quietly():
            measure = prepare(load, changed)

        def measured() -> Tensor:
            with quietly():
                return measure()

        return measured

    return prepared
