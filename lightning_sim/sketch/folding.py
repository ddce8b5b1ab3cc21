"""Signed folding of wide features into few columns, one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sim.sketch.hashing import column_signs

__all__ = ["fold", "fold_once", "num_folds"]


def num_folds(width: int, num_projections: int) -> int:
    """How many independent folds represent features of this width: 1 (unfolded) up to `num_projections`, else 2."""
    return 1 if width <= num_projections else 2


def fold(x: Tensor, num_projections: int, seed: int) -> list[Tensor]:
    """Signed folds of the columns of `x`: column j is added, with a random sign, to column ``j mod c``.

    Inner products of rows keep their expectation, ``E <fold(x_i), fold(x_j)> = <x_i, x_j>``. The squared norm of a
    kernel matrix is inflated by the noise of one fold; two independent folds of half the width give an unbiased
    ``<K_1, K_2>``.

    Args:
        x: (b, p), floating-point.
        num_projections: k. Rows of width p <= k are returned as they are, exact.
        seed: chooses the signs.

    Returns:
        One tensor (b, p) while p <= k, else two tensors (b, k / 2).
    """
    width = x.shape[1]
    if num_folds(width, num_projections) == 1:
        return [x]
    return _fold(x, num_projections // 2, (0, 1), seed)


def fold_once(x: Tensor, columns: int, index: int, seed: int) -> Tensor:
    """The fold with number `index` of the columns of `x` (b, p): (b, min(p, columns))."""
    return _fold(x, columns, (index,), seed)[0]


def _fold(x: Tensor, columns: int, indices: Sequence[int], seed: int) -> list[Tensor]:
    signs = [column_signs(x.shape[1], index, seed, x.device, x.dtype) for index in indices]
    folds = [torch.mul(x[:, :columns], sign[:columns]) for sign in signs]
    # Slice by slice: writing the signed product out first would cost several more passes over memory, and all folds
    # take a slice while it is in the cache.
    for start in range(columns, x.shape[1], columns):
        stop = min(start + columns, x.shape[1])
        for folded, sign in zip(folds, signs, strict=True):
            folded[:, : stop - start].addcmul_(x[:, start:stop], sign[start:stop])
    return folds
