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
    places = torch.arange(values.shape[-1], device=values.device)
    starts = ordered.diff(dim=-1, prepend=ordered[..., :1]) > rounding
    ends = torch.cat([starts[..., 1:], torch.ones_like(starts[..., :1])], dim=-1)
    first = torch.where(starts, places, 0).cummax(-1).values
    last = torch.where(ends, places, len(places)).flip(-1).cummin(-1).values.flip(-1)
    return torch.empty_like(values).scatter(-1, order, (first + last + 2).to(values.dtype) / 2)
