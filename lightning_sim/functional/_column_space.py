"""The subspace of sample space that the features of a representation span."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sim._centering import center_columns, widen

__all__ = ["column_space_basis"]


def column_space_basis(x: Tensor) -> Tensor:
    """Orthonormal basis (n, rank) of the centred columns of `x` (n, p), its rank decided by the dtype of `x`.

    Columns are divided by the norm they had before centring. The span stays the same, and the rounding of
    the input, which is relative to the uncentred entries, becomes equally large in every column; so neither
    columns between 1e-4 and 1e4 nor a large mean make noise look like a direction, or a direction like noise.
    The basis of an `x` without variance is empty.
    """
    columns: Tensor = center_columns(x)
    varies = columns.detach().any(0)
    scale = x.detach()[:, varies].abs().amax(0)  # before squaring: the squares may leave the range
    columns = columns[:, varies] / scale
    columns = columns / torch.linalg.vector_norm(widen(x.detach()[:, varies]) / scale, dim=0)
    n, p = columns.shape
    if p == 0:
        return columns
    if n > p:
        # For full rank QR is cheaper than SVD, and its derivative does not blow up at equal singular values.
        q: Tensor
        q, r = torch.linalg.qr(columns)
        if bool(_exceeds_rounding(torch.linalg.svdvals(r.detach()), n, p, x.dtype).all()):
            return q
    # QR of a deficient matrix would complete its columns with arbitrary directions.
    u: Tensor
    u, singular_values, _ = torch.linalg.svd(columns, full_matrices=False)
    return u[:, _exceeds_rounding(singular_values.detach(), n, p, x.dtype)]


def _exceeds_rounding(singular_values: Tensor, n: int, p: int, input_dtype: torch.dtype) -> Tensor:
    """Which singular values of n x p columns of norm 1 are larger than rounding alone can make them.

    Independent errors of relative size e in the entries have spectral norm e (1 + sqrt(p / n)); measured in
    float32 outputs of linear layers, e is up to 5 eps. The factorisation errs relative to the largest value.
    """
    entries = 16 * torch.finfo(input_dtype).eps * (1 + math.sqrt(p / n))
    factorisation = 4 * torch.finfo(singular_values.dtype).eps * math.sqrt(max(n, p)) * singular_values.max()
    return singular_values > factorisation + entries
