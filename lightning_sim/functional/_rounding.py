"""Rows of a representation beside the rounding errors they carry, and how far those reach into a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_sim._centering import center_columns, widen

__all__ = ["Rows", "linear_kernel_rounding", "over_largest", "product_rounding", "rows_of"]


class Rows(NamedTuple):
    """Features (n, p), and by how much rounding may have changed each of them on its way here, (n, p)."""

    values: Tensor
    errors: Tensor


def rows_of(x: Tensor, *, center: bool = True) -> Rows:
    """The rows of `x`, centred if asked.

    The rounding that the input carries is relative to its entries as they were given, so it grows beside what is
    left when a mean is taken off; centring rounds to the precision it is done in. Columns that do not vary carry none.
    """
    values = center_columns(x) if center else widen(x)
    errors = torch.finfo(x.dtype).eps * widen(x.detach()).abs()
    errors = errors + torch.finfo(values.dtype).eps * values.detach().abs()
    return Rows(values, errors.masked_fill(~values.detach().any(0), 0))


def over_largest(batches: Sequence[Rows]) -> list[Rows]:
    """The batches over the largest magnitude in all, for measures free of scale whose products must stay in range."""
    largest = torch.stack([rows.values.detach().abs().amax() for rows in batches]).amax()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    return [Rows(rows.values / scale, rows.errors / scale) for rows in batches]


def linear_kernel_rounding(rows: Rows) -> Tensor:
    r"""The squared norm of the rounding errors of $K = X X^T$ beside its diagonal.

    Independent errors e of the entries give $K_{ij}$ an error of variance $\sum_q x_{iq}^2 e_{jq}^2 + e_{iq}^2
    x_{jq}^2 + e_{iq}^2 e_{jq}^2$. Twice that allows for errors of more than one unit in the last place, as computed
    features have. Centring a kernel is a projection and adds nothing.
    """
    squares, errors = rows.values.detach().square(), rows.errors.square()
    carried = 4 * ((squares + errors).sum(0) @ errors.sum(0) - (squares * errors).sum())
    return carried + product_rounding(rows.values, squares.sum()) ** 2


def product_rounding(values: Tensor, trace: Tensor) -> Tensor:
    """The norm of what computing X X' of the features (n, p) in their dtype adds, of a kernel with this trace.

    A sum of p products errs by about sqrt(p) eps |x_i| |x_j|: measured up to p = 4,000 for features of one sign, where
    additions round alike most.
    """
    return 16 * math.sqrt(values.shape[1]) * torch.finfo(values.dtype).eps * trace
