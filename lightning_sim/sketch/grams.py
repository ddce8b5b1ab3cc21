"""Centred Gram matrices of sketches, block by block, so that the matrices of many layers need not lie side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_sim.sketch.factors import factors_sum

__all__ = ["ROWS_PER_BLOCK", "FoldGram", "Gram", "KeptGram", "ProductGram", "gram_dtype"]

ROWS_PER_BLOCK = 128
_FEW_BUCKETS = 256


def gram_dtype(num_buckets: int, dtype: torch.dtype) -> torch.dtype:
    """In which Grams of so many buckets are computed: of few in float64, where HSIC_1 cancels most and costs least."""
    return torch.float64 if num_buckets <= _FEW_BUCKETS else dtype


class Gram(Protocol):
    """A symmetric matrix over the buckets."""

    def write_block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write these of its entries: `ROWS_PER_BLOCK` rows, from the diagonal on."""
        ...


@dataclass(frozen=True)
class FoldGram:
    """Inner products of rows of centred features (M, c)."""

    features: Tensor

    def write_block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write (rows, columns) of X X'."""
        torch.mm(self.features[rows], self.features[columns].T, out=out)


class KeptGram:
    """The blocks of a Gram from the diagonal on, computed once."""

    def __init__(self, gram: Gram, num_buckets: int, dtype: torch.dtype, device: torch.device) -> None:
        self.blocks = []
        for start in range(0, num_buckets, ROWS_PER_BLOCK):
            rows = slice(start, min(start + ROWS_PER_BLOCK, num_buckets))
            block = torch.empty(rows.stop - start, num_buckets - start, dtype=dtype, device=device)
            gram.write_block(rows, slice(start, None), block)
            self.blocks.append(block)

    def write_block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write a block that begins on the diagonal."""
        out.copy_(self.blocks[rows.start // ROWS_PER_BLOCK])


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
