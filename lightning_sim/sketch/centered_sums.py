"""What follows from a sketch's sums alone: the centred data, their Gram matrices, and what is wrong with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sim.sketch.bucket_sums import BucketSums
from lightning_sim.sketch.factors import tensor_sketched
from lightning_sim.sketch.grams import FoldGram, Gram, ProductGram
from lightning_sim.sketch.hashing import run

__all__ = ["CenteredSums"]

_ROUNDING = 4  # errors of so many units in the last place of a mean are taken for rounding
_CONSTANT = "is constant over the samples"
_NOT_FINITE = "holds NaN or infinite features"


class CenteredSums(BucketSums):
    """Sums over buckets, read as samples that are centred exactly; similarities are computed from these."""

    keep_cores = False  #: whether the decompositions that NBS takes are kept, as of a reference

    def ones(self) -> Tensor:
        """The sketched vector of ones S1 (M,), by which data are centred."""
        return self._held()["bucket_ones"]

    def uncentered(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sketched features as they came (folds, M, c), the sketched ones (M,) and the features' means (folds, c)."""
        sums = self._held()
        if self.keeps_factors:
            sums = tensor_sketched(sums, self.num_projections, self.seed)
        return sums["bucket_sums"], sums["bucket_ones"], sums["feature_sums"] / self.count

    def centered(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Sketched, exactly centred features (folds, M, c), and the sketched ones (M,).

        Of a product its tensor sketch, also where the factors are kept. Columns that do not vary by more than rounding
        are zero: next to others, what rounding leaves of a large constant would pass for their variance.

        Args:
            dtype: to compute in, the sketch's if None.
        """
        sums, ones, means = self.uncentered()
        dtype = dtype or self.dtype
        centered = torch.addcmul(sums.to(dtype), ones[:, None].to(dtype), means[:, None, :].to(dtype), value=-1)
        if self._constant is None:
            spread = torch.maximum(centered.amax(1), -centered.amin(1))
            # Of a fold, all columns have the rounding of the columns in it, also where those have cancelled.
            sizes = means.square().mean(1, keepdim=True).sqrt() if self.is_folded else means.abs()
            rounding = _ROUNDING * torch.finfo(self.dtype).eps * ones.abs().amax() * sizes
            constant = (spread <= rounding) & spread.isfinite()
            self._constant = (constant if bool(constant.any()) else None,)
            self.scale = float(spread.masked_fill(constant, 0).max())
        if self._constant[0] is not None:
            centered.masked_fill_(self._constant[0][:, None], 0)
        return centered, ones

    def occupied(self) -> Tensor:
        """Buckets that hold something, (M,); one whose samples cancel in all sums adds nothing, and counts as empty."""
        sums = self._held()
        held = sums["bucket_ones"] != 0
        if not self.keeps_factors:
            held |= (sums["bucket_sums"] != 0).any(2).any(0)
        return held

    def rows(self) -> Tensor:
        """The samples' features (N, c) in the order of their buckets, which is the same in every network's sketch.

        Any function of two feature matrices can be computed from the rows of two sketches. They are the features
        themselves for layers up to `num_projections` wide; of wider ones both folds side by side, whose inner products
        are right on average. Of a product of features and gradients they are its (tensor sketched) outer products.

        Raises:
            ValueError: when a bucket holds several samples, whose features cannot be told apart.
        """
        sums, ones, _ = self.uncentered()
        own = ones.abs() == 1
        if int(own.sum()) != self.count:
            raise ValueError(
                f"{self.count} samples share {self.num_buckets} buckets, and the features of single samples are lost; "
                "make the sketch with at least as many buckets as there are samples, with consecutive ids"
            )
        rows = torch.cat(list(sums[:, own] * ones[own, None]), dim=1)
        scaled: Tensor = rows / len(sums) ** 0.5
        return scaled

    def kernel(self) -> Tensor:
        """Gram matrix (M, M) of the sketched, centred data in float64, the mean of both folds', diagonal included."""
        if self.keeps_factors:
            return self.product().block(slice(None), slice(None))
        folds = self.centered()[0].double()
        return torch.einsum("hmc,hnc->mn", folds, folds) / len(folds)

    def product(self) -> ProductGram:
        """The kernel of features and gradients that are kept side by side."""
        return ProductGram(self._held(), self.count)

    def grams(self, room: Tensor, buckets: Tensor | None = None) -> tuple[Gram, Gram]:
        """Gram matrices of the sketched, centred data by the one and the other fold, scaled.

        Args:
            room: for `num_buckets` * `num_projections` entries of the dtype in which Grams are computed, which those of
                several sketches share.
            buckets: of which to form them, all if None; the others must be empty.
        """
        rows = slice(None) if buckets is None else run(buckets) or buckets
        if self.keeps_factors:
            product = ProductGram({name: value[rows] for name, value in self._held().items()}, self.count)
            return product, product
        if self._constant is None:
            self.centered(room.dtype)  # constant columns are found in the precision of the Gram
        assert self._constant is not None
        scale = self.scale if self.problem() is None else 1.0
        sums, ones, means = self.uncentered()
        ones, means = ones[rows].to(room.dtype), means.to(room.dtype)
        (constant,) = self._constant
        first, *second = (
            FoldGram(sums[fold, rows], ones, means[fold], None if constant is None else constant[fold], scale, room)
            for fold in range(len(sums))
        )
        return first, second[0] if second else first

    def problem(self) -> str | None:
        """Why no similarity can be computed, in words, or None: NaN or infinite features, or no variance."""
        if self._known_problem is None:
            self._known_problem = (self._problem() if self.count else "holds no samples",)
        return self._known_problem[0]

    def _problem(self) -> str | None:
        # Subtracting the mean of a constant leaves rounding errors of this size, relative to the mean.
        rounding = _ROUNDING * torch.finfo(self.dtype).eps
        if self.keeps_factors:
            product = self.product()
            trace, uncentered = product.trace, product.uncentered_trace
            self.raw_share = float((uncentered / trace).sqrt())
            if not bool(trace.isfinite()):
                return _NOT_FINITE
            # Of squares, which are subtracted in float64.
            return _CONSTANT if bool(trace <= max(rounding**2, 1e-14) * uncentered) else None
        centered, ones = self.centered()
        means = self._sums["feature_sums"] / self.count
        if not math.isfinite(self.scale):
            return f"{_NOT_FINITE}, or finite ones too large for its {'folds' if self.is_folded else 'sums'}"
        if self.scale == 0:
            sums = self._sums["bucket_sums"]
            moved = torch.addcmul(sums, ones[:, None], means[:, None, :].to(self.dtype), value=-1).abs().max()
            if not bool(moved > 0):
                return _CONSTANT
            share = float(moved / means.abs().max())
            return (
                f"{_CONSTANT} up to rounding: it varies by {share:.0e} of its mean, which sums in "
                f"{str(self.dtype).removeprefix('torch.')} cannot tell from none; subtract the mean first, or sum in "
                "float64"
            )
        size = torch.linalg.vector_norm(centered)
        if not 1e-15 < float(size) < 1e15:  # squares of float32 may be out of its range
            size = torch.linalg.vector_norm(centered, dtype=torch.float64)
        largest = torch.linalg.vector_norm(means) * torch.linalg.vector_norm(ones, dtype=torch.float64)
        self.raw_share = math.hypot(1, float(largest / size))
        return None
