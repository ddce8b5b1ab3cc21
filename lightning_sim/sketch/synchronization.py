"""Adding the sketches of all ranks: one all-reduce of the stacked state, whatever the number of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_sim.sketch.sketch import Sketch

__all__ = ["all_reduce_sketches", "all_reduce_sum"]


def all_reduce_sketches(
    sketches: Sequence[Sketch], device: torch.device | str = "cpu", group: dist.ProcessGroup | None = None
) -> None:
    """Replace every sketch, in place, by the sum of that sketch over the ranks of a process group.

    Every rank passes the same number of sketches in the same order; a rank that saw no samples passes empty ones.
    Communicates the state (O(M k) per sketch) once, and six integers per sketch and rank before it.

    Args:
        sketches: one for each layer.
        device: where a rank that saw no samples makes its zeros.
        group: of ranks; the default group if None.

    Raises:
        ValueError: on every rank alike, when the ranks saw features of different widths.
    """
    if not sketches:
        return
    table = torch.tensor(
        [
            [s.width, s.gradient_width, s.count > 0 and not s.keeps_factors, s.num_directions, s.count, s.fingerprint]
            for s in sketches
        ],
        dtype=torch.int64,
        device="cpu",
    )
    tables = _all_gather(table, device, group)
    widths, gradient_widths, folded, directions = tables.max(0).values[:, :4].unbind(1)
    counts, fingerprints = tables.sum(0)[:, 4:].unbind(1)
    for index in range(len(sketches)):
        seen = sorted(set(tables[:, index, 0].tolist()) - {0})
        if len(seen) > 1:
            raise ValueError(f"the ranks saw features of different widths, {seen}, for sketch {index}")
        if len({row[3] for row in tables[:, index].tolist() if row[4]}) > 1:
            raise ValueError(f"the ranks follow different leading directions, for sketch {index}")
    present = [index for index in range(len(sketches)) if widths[index] > 0]
    for index in present:
        sketches[index].allocate(int(widths[index]), device, int(gradient_widths[index]))
        sketches[index].count, sketches[index].fingerprint = int(counts[index]), int(fingerprints[index])
        sketches[index].num_directions = int(directions[index])
        if folded[index]:
            sketches[index].sketch_factors()
    _give_up_shared_buckets([sketches[index] for index in present if sketches[index].keeps_factors], group)
    for dtype in dict.fromkeys((sketches[0].dtype, torch.float64)):
        sums = [value for index in present for value in sketches[index].sums() if value.dtype == dtype]
        stacked = torch.cat([value.flatten() for value in sums]) if sums else torch.zeros(0, dtype=dtype)
        all_reduce_sum(stacked, group)
        parts = torch.split(stacked, [value.numel() for value in sums])
        for value, reduced in zip(sums, parts, strict=True):
            value.copy_(reduced.view_as(value))
    for sketch in sketches:
        sketch.forget()


def all_reduce_sum(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum over the ranks, in place; does nothing for an empty tensor."""
    if values.numel():
        dist.all_reduce(values, group=group)
    return values


def _give_up_shared_buckets(sketches: Sequence[Sketch], group: dist.ProcessGroup | None) -> None:
    """Factors cannot be added where two ranks have samples in one bucket; all ranks find the same."""
    if sketches:
        held = torch.stack([sketch.ones().abs() for sketch in sketches])
        for sketch, most in zip(sketches, all_reduce_sum(held, group).amax(1).tolist(), strict=True):
            if most > 1:
                sketch.sketch_factors()


def _all_gather(table: Tensor, device: torch.device | str, group: dist.ProcessGroup | None) -> Tensor:
    # NCCL moves tensors of its device only, gloo gathers those of the CPU only.
    table = table.to("cpu" if dist.get_backend(group) == "gloo" else device)
    gathered = [torch.empty_like(table) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, table, group=group)
    return torch.stack(gathered).cpu()
