"""Running networks over the probe where a training runs: its device, precision and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_sim.probe.chain import find_chain
from lightning_sim.probe.forward import call_network
from lightning_sim.probe.gradients import Objective
from lightning_sim.probe.guards import evaluating, isolated_random_state, uncompiled
from lightning_sim.probe.samples import Probe
from lightning_sim.probe.snapshot import Snapshot, take_snapshot
from lightning_sim.sketch import Sketch, all_reduce_sketches

__all__ = ["ProbeRunner", "Summed"]

Summed = Callable[[Iterator[tuple[Tensor, Any]], Mapping[str, Tensor]], Tensor]


@dataclass
class ProbeRunner:
    """Takes snapshots of networks on one probe, leaving no trace on the network or the random state.

    Attributes:
        probe: the samples.
        make_sketch: an empty sketch.
        forward: ``forward(network, batch)``.
        device: where networks run.
        rank: of this process among `world_size`, which share the probe.
        prepare: ``prepare(network, batch)`` brings a batch to the device and precision of a network.
        context: ``context(network)`` is entered around every forward, for autocast.
        seed: of the random state inside, so that random transforms of the probe repeat.
        representations: what of a layer is sketched.
        objective: ``objective(output, batch)``, whose gradients are taken; the expected loss if None.
        pool: what of a sequence counts as a sample.
    """

    probe: Probe
    make_sketch: Callable[[], Sketch]
    forward: Callable[[nn.Module, Any], Any] = call_network
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    prepare: Callable[[nn.Module, Any], Any] = lambda network, batch: batch
    context: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext
    seed: int = 0
    representations: Sequence[str] = ("features",)
    objective: Objective | None = None
    pool: str = "flatten"

    def try_first_batch(self, network: nn.Module, layers: Sequence[str]) -> Snapshot:
        """Features of the first batch alone, the same on every rank: which layers run, and what comes out."""
        batches = islice(self.probe.batches(0, self.world_size), 1)
        return self._snapshot(network, layers, batches, representations=("features",))

    def find_chain(self, network: nn.Module) -> list[str]:
        """The network's linear layers in the order in which they run on the first batch.

        Raises:
            ValueError: when they are no chain, with why.
        """
        with self._untraced(network):
            _, batch = next(self.probe.batches(0, self.world_size))
            return find_chain(network, self.prepare(network, batch), self._forward_in_context)

    def snapshot(
        self,
        network: nn.Module,
        layers: Sequence[str],
        *,
        keep_logits: bool = True,
        weights: Mapping[str, Tensor] | None = None,
        advance: Callable[[], None] = lambda: None,
        chain: Sequence[str] = (),
        recycled: Snapshot | None = None,
    ) -> Snapshot:
        """Snapshot over the whole probe: every rank runs its share, and the sketches are added up.

        Args:
            network: run in evaluation mode on `device`; a network that lies elsewhere is brought back afterwards.
            layers: names, with uses (``relu[1]``) where a layer is used several times.
            keep_logits: whether to keep the outputs (of this rank's samples).
            weights: to run with, instead of the network's own.
            advance: called after every batch.
            chain: linear layers whose weights are kept.
            recycled: an older snapshot, not needed any more, whose memory is used again.

        Raises:
            RuntimeError: on every rank, when the network failed on another one.
        """
        failure: BaseException | None = None
        snapshot = Snapshot()
        if self.world_size > 1 and weights is None:
            weights = self._buffers_of_rank_zero(network)
        try:
            batches = self._advancing(self.probe.batches(self.rank, self.world_size), advance)
            snapshot = self._snapshot(
                network,
                layers,
                batches,
                representations=self.representations,
                keep_logits=keep_logits,
                weights=weights,
                chain=chain,
                recycled=recycled,
            )
        except Exception as error:
            failure = error
        self._agree_on_failure(failure)
        if self.world_size > 1:
            self._add_ranks(snapshot, layers, keep_logits)
        return snapshot

    def mean(
        self,
        network: nn.Module,
        summed: Summed,
        *,
        weights: Mapping[str, Tensor] | None = None,
        one_by_one: bool = False,
        advance: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Mean over the probe's samples of what every rank adds up over its share.

        Args:
            network: in evaluation mode inside `summed`, and on `device`.
            summed: ``summed(batches, weights)`` gives the sum over the samples in the batches, which come prepared and
                with their ids, always of one shape, with these weights instead of the network's own of the same names.
            weights: parameters and buffers to run with.
            one_by_one: whether every batch is one sample.
            advance: called after every batch.

        Raises:
            RuntimeError: on every rank, when `summed` failed on another one.
        """
        failure: BaseException | None = None
        total = torch.zeros(())
        weights = self.weights_of_all_ranks(network, weights)
        try:
            batches = self.probe.batches(self.rank, self.world_size, one_by_one=one_by_one)
            total = self._sum(network, summed, self._advancing(batches, advance), weights)
        except Exception as error:
            failure = error
        self._agree_on_failure(failure)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total / self.probe.size

    def try_first(self, network: nn.Module, summed: Summed, *, one_by_one: bool = False) -> None:
        """Run what `mean` is to run on the first batch alone, the same on every rank."""
        self._sum(network, summed, islice(self.probe.batches(0, self.world_size, one_by_one=one_by_one), 1), {})

    def weights_of_all_ranks(
        self, network: nn.Module, weights: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Tensor]:
        """What every rank runs with instead of the network's own: `weights`, or else the buffers of rank 0."""
        if weights is None:
            return self._buffers_of_rank_zero(network) if self.world_size > 1 else {}
        return weights

    def num_batches(self, *, one_by_one: bool = False) -> int:
        """How many batches this rank runs in one pass."""
        return self.probe.num_batches(self.rank, self.world_size, one_by_one=one_by_one)

    def _sum(
        self,
        network: nn.Module,
        summed: Summed,
        batches: Iterator[tuple[Tensor, Any]],
        weights: Mapping[str, Tensor],
    ) -> Tensor:
        with self._untraced(network):
            return summed(((ids, self.prepare(network, batch)) for ids, batch in batches), weights)

    def _snapshot(
        self,
        network: nn.Module,
        layers: Sequence[str],
        batches: Iterator[tuple[Tensor, Any]],
        *,
        representations: Sequence[str],
        **options: Any,
    ) -> Snapshot:
        modules = list(dict.fromkeys(_module_of(layer) for layer in layers))
        with self._untraced(network):
            return take_snapshot(
                network,
                ((ids, self.prepare(network, batch)) for ids, batch in batches),
                modules,
                forward=self._forward_in_context,
                make_sketch=self.make_sketch,
                representations=representations,
                objective=self.objective,
                pool=self.pool,
                **options,
            )

    @contextmanager
    def _untraced(self, network: nn.Module) -> Iterator[None]:
        """The network on the device, in evaluation mode, with the probe's random state; as before afterwards."""
        home = next((parameter.device for parameter in network.parameters()), self.device)
        if home != self.device:
            network.to(self.device)
        try:
            # A forward inside of inference_mode, as standalone validation runs it, would leave tensors that the sketch
            # cannot be updated from.
            with torch.inference_mode(False), uncompiled(), isolated_random_state(self.seed), evaluating(network):
                yield
        finally:
            if home != self.device:
                network.to(home)

    def _forward_in_context(self, network: nn.Module, batch: Any) -> Any:
        with self.context(network):
            return self.forward(network, batch)

    def _advancing(
        self, batches: Iterator[tuple[Tensor, Any]], advance: Callable[[], None]
    ) -> Iterator[tuple[Tensor, Any]]:
        for batch in batches:
            yield batch
            advance()

    def _agree_on_failure(self, failure: BaseException | None) -> None:
        # A rank that failed must say so before the others wait for its sketches.
        if self.world_size > 1:
            failed = torch.tensor([float(failure is not None)], device=self.device)
            dist.all_reduce(failed)
            if failed.item() and failure is None:
                raise RuntimeError("the network failed on another rank")
        if failure is not None:
            raise failure

    def _buffers_of_rank_zero(self, network: nn.Module) -> dict[str, Tensor]:
        # Batch statistics differ from rank to rank; those of rank 0 are the ones that checkpoints hold.
        buffers = {name: value.detach().to(self.device, copy=True) for name, value in network.named_buffers()}
        for value in buffers.values():
            dist.broadcast(value, src=0)
        return buffers

    def _add_ranks(self, snapshot: Snapshot, layers: Sequence[str], keep_logits: bool) -> None:
        # Rank 0 always has samples, so that what it could not sketch, no rank could.
        problems: list[dict[str, str]] = [{} for _ in range(self.world_size)]
        dist.all_gather_object(problems, snapshot.problems)
        snapshot.problems = {name: problem for found in reversed(problems) for name, problem in found.items()}
        snapshot.sketches = {
            representation: {
                layer: snapshot.of(representation).get(layer) or self.make_sketch()
                for layer in layers
                if snapshot.problem_of(layer, representation) is None
            }
            for representation in self.representations
        }
        sketches = [sketch for of_layers in snapshot.sketches.values() for sketch in of_layers.values()]
        all_reduce_sketches(sketches, self.device)
        if keep_logits and "" not in snapshot.problems:
            snapshot.logits = self._gather_logits(snapshot.logits)

    def _gather_logits(self, logits: Tensor | None) -> Tensor:
        """The logits of all ranks (samples, classes), in the order of the sample ids, on every rank."""
        device = torch.device("cpu") if dist.get_backend() == "gloo" else self.device
        classes = torch.tensor([0 if logits is None else logits.shape[1]], device=device)
        dist.all_reduce(classes, dist.ReduceOp.MAX)
        longest = -(-self.probe.size // self.world_size)
        padded = torch.zeros(longest, int(classes), device=device)
        if logits is not None:
            padded[: len(logits)] = logits.to(device)
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded)
        # Rank r holds the samples r, r + world size, ...
        return torch.stack(gathered, dim=1).flatten(0, 1)[: self.probe.size].cpu()


def _module_of(layer: str) -> str:
    name, bracket, use = layer.rpartition("[")
    return name if bracket and use.endswith("]") and use[:-1].isdigit() else layer
