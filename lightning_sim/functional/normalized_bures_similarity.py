"""Normalised Bures similarity of two representations."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sim._centering import center_columns, unit_scale
from lightning_sim._checks import check_pair, warn_if_constant
from lightning_sim.functional.nuclear_norm import nuclear_norm, nuclear_norm_and_polar_factor

__all__ = ["normalized_bures_similarity"]


def normalized_bures_similarity(x: Tensor, y: Tensor) -> Tensor:
    r"""Overlap of `x` and `y` after the best rotation of one to the other: the fidelity of their kernels.

    $NBS = tr((K^{1/2} L K^{1/2})^{1/2}) / \sqrt{tr K \; tr L} = \|x_c^T y_c\|_* / (\|x_c\|_F \|y_c\|_F)$ with
    $x_c$, $y_c$ the centred data, $K = x_c x_c^T$, $L = y_c y_c^T$ and $\|.\|_*$ the sum of singular values.

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Range: [0, 1], no units. NBS^2 = 1 - Procrustes disparity, and NBS
    is the cosine of the angular Procrustes distance.

    Invariant to orthogonal maps, translations and isotropic scaling of either side and to joint permutations
    of the samples; not to invertible linear maps. CKA(K, L) <= NBS(K^2, L^2) (eq. 14). Biased upwards:
    unrelated representations that are much wider than n read nearly 1, and there is no cheap correction.
    Compare values of one n and of similar widths, or use the unbiased CKA.

    Cost: O(n (p1 m1 + p2 m2 + m1 m2) + m1 m2 min(m1, m2)) with m = min(n, p), in float64 where the device has
    it: singular values of an m1 x m2 core, reached by QR where p > n. (Square roots of the eigenvalues of the
    product K L, as some code takes, would be good to 1e-7 only.)

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`. Its first derivative is right where
        the core has full rank and a subgradient elsewhere; there is no second derivative. NaN with a warning
        that names a side without variance.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 2.

    References:
        Tang et al. 2020, "Similarity of Neural Networks with Gradients", section 3. Divided by the square
        roots of the traces, as in the authors' code (amzn/xfer), one docstring of which says traces.

    Example:
        >>> import torch
        >>> from lightning_sim.functional import normalized_bures_similarity
        >>> x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
        >>> normalized_bures_similarity(x, 2 * x.flip(1) - 1)
        tensor(1.)
    """
    x, y = check_pair(x, y)
    a, b = unit_scale(center_columns(x)), unit_scale(center_columns(y))
    if warn_if_constant(a, b):
        return x.new_tensor(torch.nan)
    return bures_ratio(a, b).to(x.dtype)


def bures_ratio(a: Tensor, b: Tensor) -> Tensor:
    """||a' b||_* / (||a||_F ||b||_F) of (n, p1) and (n, p2), neither of them zero."""
    norms = a.square().sum().sqrt() * b.square().sum().sqrt()
    return (nuclear_norm_of_product(a, b) / norms).clamp_max(1)


def nuclear_norm_of_product(a: Tensor, b: Tensor) -> Tensor:
    """||a' b||_* of (n, p1) and (n, p2)."""
    (basis_a, core_a), (basis_b, core_b) = _reduce(a.detach()), _reduce(b.detach())
    core = core_a.T @ core_b
    if not (a.requires_grad or b.requires_grad):
        return nuclear_norm(core)
    polar = nuclear_norm_and_polar_factor(core)[1]
    a, b = (z if basis is None else z @ basis for z, basis in ((a, basis_a), (b, basis_b)))
    # The nuclear norm is the largest <a u, b v> over orthonormal u, v: at the maximum they count as constants
    # for the first derivative, which spares the derivatives of QR and SVD that are infinite on rank-deficient
    # data.
    norm: Tensor = ((a @ polar) * b).sum()
    return norm


def _reduce(a: Tensor) -> tuple[Tensor | None, Tensor]:
    """An orthonormal basis of the row space and coordinates (n, min(n, p)) in it; None for the identity."""
    if a.shape[1] <= a.shape[0]:
        return None, a
    basis, triangle = torch.linalg.qr(a.T)
    return basis, triangle.T
