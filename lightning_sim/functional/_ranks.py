"""Ranks of values, with ties sharing the average of the ranks they occupy."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["average_ranks"]


def average_ranks(values: Tensor, *, rounding: float = 0.0) -> Tensor:
    """Ranks 1, 2, ... along the last dimension of `values` (..., m), in its dtype.

    Values are tied when they are equal, or no further than `rounding` from the next smaller one.
    """
    ordered, order = values.sort(dim=-1)
    if rounding:
        starts_group = ordered.diff(dim=-1, prepend=ordered[..., :1]) > rounding
        position = torch.arange(values.shape[-1], device=values.device)
        ordered = ordered.gather(-1, torch.where(starts_group, position, 0).cummax(-1).values)
    below = torch.searchsorted(ordered, ordered, right=False)
    up_to = torch.searchsorted(ordered, ordered, right=True)
    return torch.empty_like(values).scatter(-1, order, (below + up_to + 1).to(values.dtype) / 2)
