"""Ranks that run their shares of one probe: keeping them in step, and bringing together what each of them has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_sim.probe.snapshot import Snapshot
from lightning_sim.sketch import Sketch, all_reduce_sketches
from lightning_sim.sketch.leading_directions import LeadingDirections

__all__ = [
    "LostRanksError",
    "add_ranks",
    "add_sums",
    "buffers_of_rank_zero",
    "directions_of_rank_0",
    "failing_together",
]


class LostRanksError(RuntimeError):
    """A rank is not in step with the others any more, as when one of them has ended: the training cannot go on."""


@contextmanager
def _in_step() -> Iterator[None]:
    """What fails inside fails on this rank alone, or because of another: the ranks cannot agree on going on."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and dist.is_initialized():
            raise  # what every rank finds alike
        raise LostRanksError(
            f"a measurement lost the other ranks ({type(error).__name__}: {error}); if one of the processes has ended, "
            "the first error is in its output"
        ) from error


@contextmanager
def failing_together(world_size: int, device: torch.device) -> Iterator[None]:
    """Raise on every rank where one failed inside, before any of them waits for what another one has.

    Raises:
        RuntimeError: when another rank failed.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if world_size > 1:
        with _in_step():
            failed = torch.tensor([float(failure is not None)], device=device)
            dist.all_reduce(failed)
            elsewhere = failure is None and failed.item() > 0
        if elsewhere:
            raise RuntimeError("the network failed on another rank")
    if failure is not None:
        raise failure


def buffers_of_rank_zero(network: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Those of rank 0 on every rank: batch statistics differ, and rank 0's are the ones that checkpoints hold."""
    with _in_step():
        buffers = {
            name: value.detach().to(device, copy=True, memory_format=torch.contiguous_format)
            for name, value in network.named_buffers()
            if not hasattr(value, "device_mesh")  # which torch keeps the same
        }
        for value in buffers.values():
            dist.broadcast(value, src=0)
    return buffers


def directions_of_rank_0(
    first: Callable[[], Snapshot], keys: Sequence[tuple[str, str]], device: torch.device
) -> dict[tuple[str, str], LeadingDirections]:
    """What rank 0 finds in the snapshot of the first samples, which every rank takes, by representation and layer."""
    with failing_together(dist.get_world_size(), device):
        snapshot = first()
    with _in_step():
        mine = [getattr(snapshot.of(representation).get(layer), "directions", None) for representation, layer in keys]
        rows = [found.rows if isinstance(found, LeadingDirections) else torch.empty(0, 0) for found in mine]
        shapes = torch.tensor([part.shape for part in rows], device=device)
        dist.broadcast(shapes, src=0)
        sizes = [2 * count * width for count, width in shapes.tolist()]  # in bytes, which all backends send
        sent = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
        if dist.get_rank() == 0 and len(sent):
            torch.cat([part.view(torch.uint8).flatten() for part in rows if len(part)], out=sent)
        if len(sent):
            dist.broadcast(sent, src=0)
        found = {}
        for key, part, (count, _) in zip(keys, torch.split(sent, sizes), shapes.tolist(), strict=True):
            if count:
                any_sketch = snapshot.all_sketches()[0]
                how = any_sketch.num_projections, any_sketch.seed, any_sketch.dtype
                found[key] = LeadingDirections(part.view(torch.bfloat16).view(count, -1), *how)
        return found


def add_sums(total: Tensor) -> None:
    """Add up over the ranks, in place."""
    with _in_step():
        dist.all_reduce(total)


def add_ranks(
    snapshot: Snapshot,
    layers: Sequence[str],
    representations: Sequence[str],
    make_sketch: Callable[[], Sketch],
    device: torch.device,
    num_logits: int | None,
    replicas: int = 1,
) -> None:
    """Make the snapshot of this rank's samples that of all, on every rank.

    Args:
        snapshot: changed in place.
        layers: the same on every rank, also on one that had no samples.
        representations: what of a layer is sketched.
        make_sketch: an empty sketch.
        device: of the ranks' tensors.
        num_logits: samples of the probe; None where no logits are kept.
        replicas: how many ranks in a row ran the same samples, of which the first one counts.
    """
    with _in_step():
        # Rank 0 always has samples, so that what it could not sketch, no rank could.
        found: list[Any] = [None] * dist.get_world_size()
        varying = set(snapshot.order) - snapshot.constant
        mine = snapshot.problems, snapshot.gradient_problems, snapshot.output_problem, varying, snapshot.constant
        dist.all_gather_object(found, mine)
        snapshot.problems, snapshot.gradient_problems, snapshot.output_problem = {}, {}, None
        snapshot.constant = set().union(*(constant for *_, constant in found))  # a rank may have had no samples
        for problems, gradient_problems, output_problem, varying, _ in found:
            snapshot.constant -= varying
            snapshot.problems = problems | snapshot.problems
            snapshot.gradient_problems = gradient_problems | snapshot.gradient_problems
            snapshot.output_problem = snapshot.output_problem or output_problem
        counts = dist.get_rank() % replicas == 0
        snapshot.sketches = {
            representation: {
                layer: (counts and snapshot.of(representation).get(layer)) or make_sketch()
                for layer in layers
                if snapshot.not_sketched(layer, representation) is None
            }
            for representation in representations
        }
        all_reduce_sketches(snapshot.all_sketches(), device)
        if num_logits is not None and snapshot.output_problem is None:
            snapshot.logits = _gather_logits(snapshot.logits, num_logits, device, replicas)


def _gather_logits(logits: Tensor | None, num_samples: int, device: torch.device, replicas: int) -> Tensor:
    """The logits of all ranks (samples, classes), in the order of the sample ids, on every rank."""
    device = torch.device("cpu") if dist.get_backend() == "gloo" else device
    world_size = dist.get_world_size()
    classes = torch.tensor([0 if logits is None else logits.shape[1]], device=device)
    dist.all_reduce(classes, dist.ReduceOp.MAX)
    longest = -(-num_samples * replicas // world_size)
    padded = torch.zeros(longest, int(classes), device=device)
    if logits is not None:
        padded[: len(logits)] = logits.to(device)
    gathered = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(gathered, padded)
    # Without replicas, rank r holds the samples r, r + world size, ...
    return torch.stack(gathered[::replicas], dim=1).flatten(0, 1)[:num_samples].cpu()
