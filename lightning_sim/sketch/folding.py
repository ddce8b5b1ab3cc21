"""Signed folding of wide features into few columns, one pass over memory."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from lightning_sim.sketch.hashing import column_signs

__all__ = ["fold", "fold_into", "num_folds"]

_ENTRIES_IN_CACHE = 2**19
_FUSED_ON = ("cuda",)
_agrees: dict[tuple[torch.device, torch.dtype], bool] = {}  # whether the fused fold does with the loop, once known


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
    columns, kind = min(x.shape[1], columns), (x.device, x.dtype)
    fused = x.device.type in _FUSED_ON and dtype == torch.float32 and len(x) > 0
    if fused and _agrees.get(kind):
        return _fused(x, columns, indices, seed)
    folded = _looped(x, columns, indices, seed, dtype)
    if fused and kind not in _agrees and bool(folded.isfinite().all()):  # else another batch decides
        _agrees[kind] = _agree(x, columns, indices, seed, folded)
    return folded


def _looped(x: Tensor, columns: int, indices: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    rows, width = x.shape
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


def _fused(x: Tensor, columns: int, indices: tuple[int, ...], seed: int) -> Tensor:
    from lightning_sim.sketch.triton_fold import fused_fold

    signs = column_signs(x.shape[1], indices, seed, x.device, torch.int8)
    return fused_fold(x if x.stride(1) == 1 else x.contiguous(), signs[:, 0], columns)


def _agree(x: Tensor, columns: int, indices: tuple[int, ...], seed: int, folded: Tensor) -> bool:
    """Whether the fused fold gives what the loop gave but for rounding; says once why not, or why there is none."""
    try:
        error = float((_fused(x, columns, indices, seed) - folded).abs().max())
        slices = -(-x.shape[1] // columns)
        if error <= 4 * slices * torch.finfo(torch.float32).eps * float(x.abs().max()):
            return True
        reason = f"it is off by {error:.1e} for {x.dtype} on {x.device}"
    except Exception as failure:
        reason = f"{type(failure).__name__}: {failure}"
    warnings.warn(f"sketches take longer without the fused fold ({reason})", RuntimeWarning, stacklevel=2)
    return False
