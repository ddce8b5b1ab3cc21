"""Centred Gram matrices of sketches, block by block, so that the matrices of many layers need not lie side by side."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lightning_sim.sketch.factors import factors_sum

__all__ = ["ROWS_PER_BLOCK", "FoldGram", "Gram", "ProductGram", "gram_dtype"]

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
    """Inner products of rows of centred features, over the square of a scale of which they are multiples.

    Rows are centred when they are needed: those of all layers at once would take as much memory again. CKA does not
    depend on the scale, and without it float32 products of features of 1e20 would overflow.

    Args:
        sums: of features over buckets (M, c), as they came.
        ones: (M,), of the dtype to compute in, as all.
        means: (c,).
        constant: the columns (c,) that are zero; None if there are none.
        scale: of the centred features.
        room: where rows are centred, M * c entries or more. Grams share it, one after the other.
    """

    def __init__(
        self, sums: Tensor, ones: Tensor, means: Tensor, constant: Tensor | None, scale: float, room: Tensor
    ) -> None:
        self._sums, self._ones, self._means, self._constant = sums, ones, means, constant
        self._scale, self._room = scale, room

    def _centered(self, start: int) -> Tensor:
        """The rows from one on."""
        rows, columns = len(self._ones) - start, len(self._means)
        centered = self._room[: rows * columns].view(rows, columns)
        torch.addcmul(self._sums[start:], self._ones[start:, None], self._means, value=-1, out=centered)
        return centered if self._constant is None else centered.masked_fill_(self._constant, 0)

    def write_block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write (rows, columns) of X X'."""
        features = self._centered(rows.start)
        first = features[: rows.stop - rows.start] / self._scale
        torch.addmm(out, first, features[columns.start - rows.start :].T, beta=0, alpha=1 / self._scale, out=out)

    def diagonal(self) -> Tensor:
        """Squared norms of the rows."""
        return self._centered(0).div_(self._scale).square_().sum(1).double()

    def sums(self, ones: Tensor) -> Tensor:
        """X (X' v): zero but for rounding where no bucket holds two samples."""
        features = self._centered(0).div_(self._scale)
        total = (features * ones[:, None]).sum(0, dtype=torch.float64)  # whose rounding a large row would multiply
        return (features @ total.to(features.dtype)).double()


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
