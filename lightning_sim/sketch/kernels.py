"""Similarities of kernel matrices over buckets, where there is nothing thinner to compute them from."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sim._checks import check_choice

__all__ = ["kernel_similarity", "positive_factor", "positive_root"]


def kernel_similarity(kernel_x: Tensor, kernel_y: Tensor, measure: str) -> Tensor:
    r"""Biased CKA or NBS of two symmetric kernel matrices, as they are.

    .. math:: CKA = \frac{\langle K, L \rangle}{\|K\|_F \|L\|_F}, \quad
        NBS = \frac{\|K^{1/2} L^{1/2}\|_*}{\sqrt{tr K \; tr L}}

    Args:
        kernel_x: (M, M), positive semidefinite but for rounding for ``"nbs"``.
        kernel_y: (M, M).
        measure: ``"cka"`` or ``"nbs"``.

    Returns:
        Scalar in float64; NaN for a kernel that is zero or not finite.

    Raises:
        ValueError: for kernels of different sizes or an unknown measure.
    """
    check_choice(measure, "measure", ("cka", "nbs"))
    if kernel_x.shape != kernel_y.shape:
        raise ValueError(f"kernels of different sizes, {tuple(kernel_x.shape)} and {tuple(kernel_y.shape)}")
    kernel_x, kernel_y = kernel_x.double(), kernel_y.double()
    if not all(bool(torch.isfinite(kernel).all()) and bool(kernel.any()) for kernel in (kernel_x, kernel_y)):
        return torch.full((), torch.nan, dtype=torch.float64, device=kernel_x.device)
    norms = torch.linalg.matrix_norm(kernel_x), torch.linalg.matrix_norm(kernel_y)
    kernel_x, kernel_y = kernel_x / norms[0], kernel_y / norms[1]
    if measure == "cka":
        cosine: Tensor = (kernel_x * kernel_y).sum()
        return cosine
    nuclear = torch.linalg.svdvals(positive_root(kernel_x) @ positive_root(kernel_y)).sum()
    similarity: Tensor = nuclear / (kernel_x.trace() * kernel_y.trace()).sqrt()
    return similarity


def positive_root(kernel: Tensor, power: float = 0.5, *, rounding: float = 0.0) -> Tensor:
    """A power (M, M) of a positive semidefinite matrix, on the directions whose eigenvalue is above rounding.

    That is the rounding of this computation, and the eigenvalues that `rounding` before it may have left.
    """
    values, vectors = _eigenpairs(kernel, rounding)
    root: Tensor = (vectors * values**power) @ vectors.T
    return root


def positive_factor(kernel: Tensor) -> Tensor:
    """X (M, r) with X X' the positive semidefinite matrix, of rank r up to rounding."""
    values, vectors = _eigenpairs(kernel)
    return vectors * values.sqrt()


def _eigenpairs(kernel: Tensor, rounding: float = 0.0) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(kernel)
    above = values > (len(kernel) * torch.finfo(kernel.dtype).eps * values[-1]).clamp_min(rounding)
    return values[above], vectors[:, above]
