"""Centred Gram matrices of sketches, block by block, so that the matrices of many layers need not lie side by side."""

from __future__ import annotations

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

    def diagonal(self) -> Tensor:
        """(M,) in float64."""
        ...

    def sums(self, ones: Tensor) -> Tensor:
        """K v, (M,) in float64, for the sketched ones v (M,)."""
        ...


class FoldGram:
    """Inner products of rows of centred features (M, c)."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def write_block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write (rows, columns) of X X'."""
        torch.mm(self.features[rows], self.features[columns].T, out=out)

    def diagonal(self) -> Tensor:
        """Squared norms of the rows."""
        return self.features.square().sum(1).double()

    def sums(self, ones: Tensor) -> Tensor:
        """X (X' v): zero but for rounding where no bucket holds two samples."""
        total = (self.features * ones[:, None]).sum(0, dtype=torch.float64)  # whose rounding a large row would multiply
        return (self.features @ total.to(self.features.dtype)).double()


class KeptGram:
    """The blocks of a Gram from the diagonal on, computed once."""

    def __init__(self, gram: Gram, ones: Tensor) -> None:
        self._diagonal, self._sums = gram.diagonal(), gram.sums(ones)
        self.blocks = []
        for start in range(0, len(ones), ROWS_PER_BLOCK):
            rows = slice(start, min(start + ROWS_PER_BLOCK, len(ones)))
            block = torch.empty(rows.stop - start, len(ones) - start, dtype=ones.dtype, device=ones.device)
            gram.write_block(rows, slice(start, None), block)
            self.blocks.append(block)

    def write_block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write a block that begins on the diagonal."""
        out.copy_(self.blocks[rows.start // ROWS_PER_BLOCK])

    def diagonal(self) -> Tensor:
        """Of the Gram."""
        return self._diagonal

    def sums(self, ones: Tensor) -> Tensor:
        """With the ones that it was made with."""
        return self._sums


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
        #: of the kernel as it is, whose rounding errors the centred one has
        self.uncentered_diagonal = self.features.square().sum(1) * self.gradients.square().sum(1)
        self.uncentered_trace = self.uncentered_diagonal.sum()
        self.trace = self.uncentered_trace - self.mean * count
        self.scale = torch.where(self.trace > 0, self.trace, 1.0)

    def write_block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write (rows, columns) of the centred kernel over its trace."""
        out.copy_(self.block(rows, columns) / self.scale)

    def diagonal(self) -> Tensor:
        """Of the centred kernel over its trace."""
        centered = self.uncentered_diagonal + self.ones * (self.mean * self.ones - 2 * self.row_means)
        return centered / self.scale

    def sums(self, ones: Tensor) -> Tensor:
        """Zero: every bucket holds one sample."""
        return torch.zeros_like(self.row_means)

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
