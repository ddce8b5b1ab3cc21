"""Ranks of values, with ties sharing the average of the ranks they occupy."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["average_ranks"]


def average_ranks(values: Tensor) -> Tensor:
    """Ranks 1, 2, ... along the last dimension of `values` (..., m), in its dtype."""
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to + 1).to(values.dtype) / 2
