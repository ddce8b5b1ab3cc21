"""Running networks over the probe where a training runs: its device, precision and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_sim._adapters import only_adapters_with_weights
from lightning_sim._guards import (
    evaluating,
    is_sharded,
    isolated_random_state,
    on_device,
    substituted_buffers,
    uncompiled,
)
from lightning_sim.functional import OpenGateKernels, open_gate_kernels
from lightning_sim.probe.chain import find_chain
from lightning_sim.probe.forward import call_network
from lightning_sim.probe.gradients import Objective
from lightning_sim.probe.ranks import add_ranks, add_sums, buffers_of_rank_zero, directions_of_rank_0, failing_together
from lightning_sim.probe.samples import Probe, advancing
from lightning_sim.probe.shards import leave_out_parts, share_of_batches, substituted_shards
from lightning_sim.probe.snapshot import Directions, Snapshot, take_snapshot
from lightning_sim.probe.substitution import module_of
from lightning_sim.sketch import Sketch

__all__ = ["ProbeRunner", "Summed"]

_TRIED = 7  # samples: few, and a number that is hardly the size of another dimension
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
        replicas: how many ranks in a row run the same share, as tensor-parallel ones do.
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
    replicas: int = 1
    prepare: Callable[[nn.Module, Any], Any] = lambda network, batch: batch
    context: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext
    seed: int = 0
    representations: Sequence[str] = ("features",)
    objective: Objective | None = None
    pool: str = "flatten"

    def try_first_batch(
        self, network: nn.Module, layers: Sequence[str], weights: Mapping[str, Tensor] | None = None
    ) -> Snapshot:
        """Features of a few samples, the same on every rank: which layers run, and what comes out, by these weights.

        Where there is a problem the whole first batch counts, since networks may need their batch size. A network that
        would get its weights by this run is refused with a ValueError.
        """
        tensors = (*network.named_parameters(), *network.named_buffers())
        if lazy := [name for name, value in tensors if is_lazy(value)]:
            raise ValueError(f"{', '.join(lazy)} would be made by its first batch; run it on one before the training")

        def tried(most: int | None) -> Snapshot:
            batches = self.probe.first_batch(self.share()[1], most=most)
            return self._snapshot(network, layers, batches, representations=("features",), weights=weights)

        with suppress(Exception):
            if not (snapshot := tried(_TRIED)).problems and snapshot.output_problem is None:
                return snapshot
        return tried(None)

    def find_chain(self, network: nn.Module) -> list[str]:
        """The network's linear layers in the order in which they run; a ValueError says why they are no chain."""

        def found(most: int | None) -> list[str]:
            with self._untraced(network, {}):
                _, batch = next(self.probe.first_batch(self.share()[1], most=most))
                return find_chain(network, self.prepare(network, batch), self._forward_in_context)

        try:
            return found(_TRIED)
        except ValueError as error:
            if error.__cause__ is not None:  # as of networks made for batches of another size
                return found(None)
            raise

    def open_gate_kernels(
        self, network: nn.Module, layers: Sequence[str], weights: Mapping[str, Tensor] | None = None, **options: Any
    ) -> OpenGateKernels:
        """:func:`lightning_sim.functional.open_gate_kernels`, of the layers that have them, with a batch as example."""
        weights = self.weights_of_all_ranks(network, weights)
        modules = list(dict.fromkeys(module_of(layer)[0] for layer in layers))
        with self._untraced(network, weights):
            batch = self.prepare(network, next(self.probe.first_batch(self.share()[1]))[1])
            options |= {"layers": modules, "strict": False, "forward": self.forward, "weights": weights}
            return open_gate_kernels(network, batch, **options)

    def snapshot(
        self,
        network: nn.Module,
        layers: Sequence[str],
        *,
        keep_logits: bool = True,
        weights: Mapping[str, Tensor] | None = None,
        advance: Callable[[], None] = lambda: None,
        recycled: Snapshot | None = None,
        find_constant: bool = False,
    ) -> Snapshot:
        """Snapshot over the whole probe: every rank runs its share, and the sketches are added up.

        Args:
            network: run in evaluation mode on `device`; a network that lies elsewhere is brought back afterwards.
            layers: names, with uses (``relu[1]``) where a layer is used several times.
            keep_logits: whether to keep the outputs (of this rank's samples).
            weights: to run with, instead of the network's own.
            advance: called after every batch.
            recycled: an older snapshot, not needed any more, whose memory is used again.
            find_constant: whether to note the layers that give the same for every sample.

        Raises:
            RuntimeError: on every rank, when the network failed on another one; LostRanksError when one has ended.
        """
        weights = self.weights_of_all_ranks(network, weights)
        options: dict[str, Any] = {"representations": self.representations, "weights": weights, "recycled": recycled}
        options["directions"] = self._directions(network, layers, options)
        with failing_together(self.world_size, self.device):
            own = share_of_batches(self.probe, *self.share(), in_step=is_sharded(network))
            options |= {"keep_logits": keep_logits, "find_constant": find_constant}
            snapshot = self._snapshot(network, layers, advancing(own, advance), **options)
        if self.world_size > 1:
            num_logits = self.probe.size if keep_logits else None
            add_ranks(snapshot, layers, self.representations, self.make_sketch, self.device, num_logits, self.replicas)
        for sketch in snapshot.all_sketches():
            sketch.directions = None  # they are as wide as the features
        return snapshot

    def _directions(self, network: nn.Module, layers: Sequence[str], options: dict[str, Any]) -> Directions:
        """What the sketches of all ranks follow: the same that those of one process do."""
        held = [] if options["recycled"] is None else options["recycled"].all_sketches()
        keys = [(representation, layer) for representation in self.representations for layer in layers]
        if self.probe.is_made or not keys or (held and not any(sketch.is_folded for sketch in held)):
            return {}
        if self.share()[1] == 1:
            return "first"
        return directions_of_rank_0(
            lambda: self._snapshot(network, layers, self.probe.first_batch(), keep_logits=False, **options),
            keys,
            self.device,
        )

    def mean(
        self,
        network: nn.Module,
        summed: Summed,
        *,
        weights: Mapping[str, Tensor] | None = None,
        one_by_one: bool = False,
        beside: nn.Module | None = None,
        part: tuple[int, int] = (0, 1),
        advance: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Mean over the probe's samples of what every rank adds up over its share.

        Args:
            network: in evaluation mode inside `summed`, and on `device`.
            summed: ``summed(batches, weights)`` gives the sum over the samples in the batches, which come prepared and
                with their ids, always of one shape, with these parameters instead of the network's own of the same
                names. Buffers are in their places already.
            weights: parameters and buffers to run with.
            one_by_one: whether every batch is one sample.
            beside: another network that `summed` runs on the same samples, in evaluation mode and on `device` as well;
                every batch is then a pair, prepared for the one and for the other.
            part: ``(index, count)``: only the samples whose id has the remainder `index` on division by `count`. The
                sum is divided by the number of all samples nevertheless.
            advance: called after every batch.

        Raises what `snapshot` does.
        """
        weights = self.weights_of_all_ranks(network, weights)
        with failing_together(self.world_size, self.device):
            batches = self.probe.batches(*self.share(part), one_by_one=one_by_one)
            total = self._sum(network, summed, advancing(batches, advance), weights, beside)
        if self.world_size > 1:
            add_sums(total)
        return total / self.probe.size

    def try_first(
        self, network: nn.Module, summed: Summed, *, one_by_one: bool = False, beside: nn.Module | None = None
    ) -> None:
        """Run what `mean` is to run on the first batch alone, the same on every rank."""
        batches = self.probe.first_batch(self.share()[1], one_by_one=one_by_one)
        self._sum(network, summed, batches, {}, beside)

    def weights_of_all_ranks(
        self, network: nn.Module, weights: Mapping[str, Tensor] | None = None
    ) -> Mapping[str, Tensor]:
        """What every rank runs with instead of the network's own: `weights`, or else the buffers of rank 0."""
        return buffers_of_rank_zero(network, self.device) if weights is None and self.world_size > 1 else weights or {}

    def num_batches(self, *, one_by_one: bool = False, part: tuple[int, int] = (0, 1)) -> int:
        """How many batches this rank runs in one pass."""
        return self.probe.num_batches(*self.share(part), one_by_one=one_by_one)

    def share(self, part: tuple[int, int] = (0, 1)) -> tuple[int, int]:
        """This rank's share of a part of the samples, as one of more ranks."""
        return self.rank // self.replicas * part[1] + part[0], self.world_size // self.replicas * part[1]

    def _sum(
        self,
        network: nn.Module,
        summed: Summed,
        batches: Iterator[tuple[Tensor, Any]],
        weights: Mapping[str, Tensor],
        beside: nn.Module | None = None,
    ) -> Tensor:
        def prepared(batch: Any) -> Any:
            own = self.prepare(network, batch)
            return own if beside is None else (own, self.prepare(beside, batch))

        also = nullcontext() if beside is None or beside is network else self._untraced(beside, {})
        with self._untraced(network, weights), also:
            return summed(((ids, prepared(batch)) for ids, batch in batches), weights)

    def _snapshot(
        self,
        network: nn.Module,
        layers: Sequence[str],
        batches: Iterator[tuple[Tensor, Any]],
        *,
        representations: Sequence[str],
        weights: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> Snapshot:
        modules = list(dict.fromkeys(module_of(layer)[0] for layer in layers))
        weights = weights or {}
        # Buffers are put in their places, where a forward may also replace them.
        buffers = {name for name, _ in network.named_buffers(remove_duplicate=False)}
        parameters = {name: value for name, value in weights.items() if name not in buffers}
        in_shards = parameters if is_sharded(network) else {}
        with self._untraced(network, weights), substituted_shards(network, in_shards):
            snapshot = take_snapshot(
                network,
                ((ids, self.prepare(network, batch)) for ids, batch in batches),
                modules,
                forward=self._forward_in_context,
                make_sketch=self.make_sketch,
                representations=representations,
                objective=self.objective,
                pool=self.pool,
                weights=None if in_shards else parameters,
                **options,
            )
        if self.replicas > 1:
            leave_out_parts(snapshot, self.replicas)
        return snapshot

    @contextmanager
    def _untraced(self, network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The network on the device, in evaluation mode, with the probe's random state; as before afterwards.

        Its buffers are copies, of `weights` where there are any.
        """
        # A forward inside of inference_mode, as standalone validation runs it, would leave tensors that the sketch
        # cannot be updated from.
        with (
            torch.inference_mode(False),
            substituted_buffers(network, weights),
            only_adapters_with_weights(network, weights),
            on_device(network, self.device),
            uncompiled(),
            isolated_random_state(self.seed),
            evaluating(network),
        ):
            yield

    def _forward_in_context(self, network: nn.Module, batch: Any) -> Any:
        with self.context(network):
            return self.forward(network, batch)
