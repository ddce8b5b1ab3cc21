"""What a sketch is made with and given, checked before anything of it is used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_sim._arguments import check_integer
from lightning_sim._checks import check_floating, check_ids, check_tensor
from lightning_sim.sketch.hashing import HashedSamples

__all__ = ["checked_batch", "checked_sizes"]


def checked_sizes(num_buckets: Any, num_projections: Any, dtype: Any) -> tuple[int, int]:
    """Buckets and projections of a sketch."""
    num_buckets = check_integer(num_buckets, "num_buckets", least=4)
    num_projections = check_integer(num_projections, "num_projections", least=2)
    if num_buckets & (num_buckets - 1):
        raise ValueError(f"`num_buckets` must be a power of two, got {num_buckets}")
    if num_projections % 2:
        raise ValueError(f"`num_projections` must be an even number, got {num_projections}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
    return num_buckets, num_projections


def checked_batch(values: Any, sample_ids: Any, name: str, width: int, hashes: tuple[int, int]) -> Tensor:
    """A batch (b, ...) as (b, p), without its graph, if there is a sample id for each of its rows.

    `width` is what p has to be, 0 if it may be any; `hashes` the buckets and seed that ids have to be hashed for.
    """
    if isinstance(sample_ids, HashedSamples):
        if (sample_ids.num_buckets, sample_ids.seed) != hashes:
            raise ValueError(
                f"`sample_ids` were hashed for num_buckets={sample_ids.num_buckets}, seed={sample_ids.seed}, and "
                f"this sketch has {hashes[0]} and {hashes[1]}"
            )
        sample_ids = sample_ids.ids
    check_tensor(values, name, "(batch, ...)")
    if values.ndim < 2 or 0 in values.shape[1:]:
        raise ValueError(f"`{name}` must have shape (batch, ...) with features, got {tuple(values.shape)}")
    check_floating(values, name)
    check_ids(sample_ids, values, name)
    rows: Tensor = values.detach().flatten(1)
    if width and rows.shape[1] != width:
        raise ValueError(
            f"`{name}` must keep their width: {width} so far, now {rows.shape[1]} (shape {tuple(values.shape)})"
        )
    return rows
