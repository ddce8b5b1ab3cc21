"""Signed folding of wide features into few columns, one pass over memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from lightning_sim.sketch.hashing import column_signs

__all__ = ["fold", "fold_into", "num_folds"]

_ENTRIES_IN_CACHE = 2**19


def num_folds(width: int, num_projections: int) -> int:
    """How many independent folds represent features of this width: 1 (unfolded) up to `num_projections`, else 2."""
    return 1 if width <= num_projections else 2


def fold(x: Tensor, num_projections: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Signed folds of the columns of `x`: column j is added, with a random sign, to column ``j mod c``.

    Inner products of rows keep their expectation, ``E <fold(x_i), fold(x_j)> = <x_i, x_j>``. The squared norm of a
    kernel matrix is inflated by the noise of one fold; two independent folds of half the width give an unbiased
    ``<K_1, K_2>``.

    Args:
        x: (b, p), floating-point.
        num_projections: k. Rows of width p <= k are returned as they are, exact.
        seed: chooses the signs.
        dtype: of the folds, float32 or float64, in which they are summed.

    Returns:
        (1, b, p) while p <= k, else (2, b, k / 2).
    """
    if num_folds(x.shape[1], num_projections) == 1:
        return x.to(dtype)[None]
    return fold_into(x, num_projections // 2, (0, 1), seed, dtype)


def fold_into(x: Tensor, columns: int, indices: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """The folds with these numbers of the columns of `x` (b, p), all in one pass: (folds, b, min(p, columns))."""
    rows, width = x.shape
    columns = min(width, columns)
    if x.is_cuda and dtype == torch.float32 and rows and (fused := _fused_fold()) is not None:
        signs = column_signs(width, indices, seed, x.device, torch.int8)
        return fused(x if x.stride(1) == 1 else x.contiguous(), signs[:, 0], columns)
    x = x.to(dtype)
    signs = column_signs(width, indices, seed, x.device, x.dtype)
    # Slice by slice: writing the signed product out first would cost several more passes over memory. All folds take a
    # slice while it is in the cache, and slices are as wide as leaves their sums there.
    slices = max(1, min(_ENTRIES_IN_CACHE // (rows * columns), width // columns)) if rows else 1
    step = slices * columns
    folded = x[:, :step] * signs[:, :, :step]
    for start in range(step, width, step):
        stop = min(start + step, width)
        folded[:, :, : stop - start].addcmul_(x[:, start:stop], signs[:, :, start:stop])
    return folded.view(len(indices), rows, slices, columns).sum(2) if slices > 1 else folded


@lru_cache(maxsize=1)
def _fused_fold() -> Callable[[Tensor, Tensor, int], Tensor] | None:
    """The kernel for CUDA devices, tried once; None where it cannot be compiled: the loop above serves there too."""
    try:
        from lightning_sim.sketch.triton_fold import fused_fold

        fused_fold(torch.ones(1, 3, device="cuda"), torch.ones(2, 3, dtype=torch.int8, device="cuda"), 2)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"sketches take longer without the fused fold ({reason})", RuntimeWarning, stacklevel=2)
        return None
    return fused_fold
