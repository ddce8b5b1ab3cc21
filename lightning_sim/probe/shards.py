"""Networks whose weights are sharded over the ranks: forwards in step, layers whole, other weights in the shards.

Under FSDP2 a forward gathers the weights of one block after the other, and is a collective: every rank runs as many.
Tensor parallelism splits single layers over ranks in a row, which run the same samples.

One measurement sends eight messages (ten with tensor parallelism) and one for every buffer, whatever the number of
layers, beside what as many forwards of validation batches do. They bring together the sketches, 4 (M k + k) + 8 M bytes
a layer whatever the size of the network and the number of ranks; six integers a layer and rank; and the outputs, 4
bytes a sample and class. Of 80 layers on 64 ranks, at M = k = 1024 and 32,000 classes: 337 MB, of which a ring moves
twice as much on every rank, 246 kB and 131 MB. Where layers p wide are folded, three more messages and one more forward
bring up to 32 p bytes a layer, the directions that rank 0 found. Measured of 6 layers, at M = k = 16, 256 classes and
32 samples: one process sends nothing, each of 2 or of 4 has sent 11 messages, with 7296 bytes of sketches, 12,288 of
directions, 458 others, and its share of the outputs, 16,384 or 8192.

A rank holds what a forward of FSDP2 does, its shards and the blocks that are gathered at a time, and the sketches. A
reference's weights from a file or a folder, and under conditions those of the start, lie whole on the CPU of every rank
when the training starts; while they are run, there is a copy of the rank's own shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_sim.probe.samples import Probe
from lightning_sim.probe.snapshot import Snapshot
from lightning_sim.sketch import Sketch

__all__ = ["leave_out_parts", "share_of_batches", "splits_layers", "substituted_shards"]

_PART = "is a part of its output on each tensor-parallel rank; name the layers around it"


def splits_layers(network: nn.Module) -> bool:
    """Whether single layers are split, as by tensor parallelism, so that several ranks need the same batches."""
    _reshard(network)
    blocks = any(hasattr(module, "reshard") for module in network.modules())
    parameters: Any = network.parameters()
    for value in parameters:
        placements = getattr(value, "placements", ())
        split = [way for way, placement in enumerate(placements) if hasattr(placement, "dim")]
        if any(value.device_mesh.size(way) > 1 for way in split[blocks:]):  # the first one is FSDP2's
            return True
    return False


def share_of_batches(probe: Probe, rank: int, shares: int, *, in_step: bool) -> Iterator[tuple[Tensor, Any]]:
    """A rank's batches; in step, where others have one more, also one of theirs without ids, which does not count."""
    yield from probe.batches(rank, shares)
    if in_step and probe.num_batches(rank, shares) < probe.num_batches(0, shares):
        ids, batch = next(probe.first_batch(shares))
        yield ids[:0], batch


@contextmanager
def substituted_shards(network: nn.Module, given: Mapping[str, Tensor]) -> Iterator[None]:
    """`given`, whole, in the shards of the parameters of these names; afterwards their own values, bit for bit.

    Blocks that a forward left gathered, as FSDP2 does with the root, are spread again before and after.
    """
    _reshard(network)
    own: dict[str, Any] = {name: value for name, value in network.named_parameters() if name in given}
    shards = {name: getattr(value, "to_local", value.detach)().detach() for name, value in own.items()}
    kept = {name: shard.clone() for name, shard in shards.items()}
    try:
        for name, value in own.items():
            shards[name].copy_(_part_of(given[name], value))
        yield
    finally:
        _reshard(network)
        for name, value in kept.items():
            shards[name].copy_(value)


def _part_of(whole: Tensor, parameter: Any) -> Tensor:
    """What of a parameter's value is this rank's."""
    if not hasattr(parameter, "device_mesh"):
        return whole
    mesh, placements = parameter.device_mesh, parameter.placements
    # Not by torch.distributed.checkpoint, which fails where FSDP2 has split what tensor parallelism had split before.
    for way in sorted(range(mesh.ndim), key=lambda way: hasattr(placements[way], "split_factor")):
        if (dim := getattr(placements[way], "dim", None)) is not None:
            parts, place = whole.chunk(mesh.size(way), dim), mesh.get_coordinate()[way]
            whole = parts[place] if place < len(parts) else whole.narrow(dim, 0, 0)
    return whole


def _reshard(network: nn.Module) -> None:
    for module in network.modules():
        if callable(reshard := getattr(module, "reshard", None)):
            reshard()


def leave_out_parts(snapshot: Snapshot, replicas: int) -> None:
    """Leave out the layers of which ranks in a row that ran the same samples saw different outputs, in place."""
    mine = {name: _signature(sketch) for name, sketch in snapshot.of().items()}
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    for rank, theirs in enumerate(found):
        for name, (total, size) in theirs.items():
            other, _ = found[rank - rank % replicas].get(name, (float("nan"), size))
            if math.isfinite(size) and not abs(total - other) <= 1e-4 * size:
                snapshot.problems[name] = _PART
    for sketches in snapshot.sketches.values():
        for name in snapshot.problems.keys() & sketches.keys():
            del sketches[name]


def _signature(sketch: Sketch) -> tuple[float, float]:
    """Two numbers that are the same for the same output: a sum with signs, and its scale.

    Without coordinates in leading directions, whose signs rounding may turn.
    """
    sums = [value[..., : value.shape[-1] - sketch.num_directions] for value in sketch.sums()]
    total = torch.cat([value.flatten().double() for value in sums])
    return float(total.sum()), float(total.abs().sum())
