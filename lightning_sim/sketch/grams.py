"""Centred Gram matrices of sketches, block by block, so that the matrices of many layers need not lie side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_sim.sketch.factors import factors_sum

__all__ = ["FoldGram", "Gram", "ProductGram"]


class Gram(Protocol):
    """A symmetric matrix over the buckets."""

    def write_block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write these of its entries, of the sketch's dtype."""
        ...


@dataclass(frozen=True)
class FoldGram:
    """Inner products of rows of centred features (M, c)."""

    features: Tensor

    def write_block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write (rows, columns) of X X'."""
        torch.mm(self.features[rows], self.features[columns].T, out=out)


class ProductGram:
    r"""Products of the inner products of features and of gradients, centred.

    With :math:`\tilde K = FF' \circ GG'` over buckets of one sample each, s their signs and n samples, centring takes
    :math:`(\tilde K s) s' / n` and its transpose off, and adds :math:`s (s'\tilde K s) s' / n^2`. Its row sums come
    from the sum C of the outer products, :math:`(\tilde K s)_i = f_i' C g_i`, without the matrix.

    In float64: the factors are not centred, and the mean of the kernel may be large next to what varies.
    """

    def __init__(self, sums: dict[str, Tensor], count: int) -> None:
        self.features, self.gradients, self.ones = (
            sums[name].double() for name in ("bucket_features", "bucket_gradients", "bucket_ones")
        )
        total = factors_sum(sums)
        self.row_means = ((self.features @ total) * self.gradients).sum(1) / count
        self.mean = total.square().sum() / count**2
        diagonal = self.features.square().sum(1) * self.gradients.square().sum(1)
        #: of the squared norm of the centred samples, whose rounding errors are those of the uncentred
        self.trace, self.uncentered_trace = diagonal.sum() - self.mean * count, diagonal.sum()
        self.scale = torch.where(self.trace > 0, self.trace, 1.0)

    def write_block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write (rows, columns) of the centred kernel over its trace."""
        out.copy_(self.block(rows, columns) / self.scale)

    def block(self, rows: slice, columns: slice) -> Tensor:
        """(rows, columns) of the centred kernel in float64."""
        kernel = self.uncentered(rows, columns)
        kernel -= torch.outer(self.row_means[rows], self.ones[columns])
        kernel -= torch.outer(self.ones[rows], self.row_means[columns] - self.mean * self.ones[columns])
        return kernel

    def uncentered(self, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """(rows, columns) of the kernel as it is, in float64."""
        kernel = self.features[rows] @ self.features[columns].T
        kernel *= self.gradients[rows] @ self.gradients[columns].T
        return kernel
