"""Centred kernel alignment of what the inputs do not already explain."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sim._centering import undefined
from lightning_sim._checks import check_flag, check_pair, warn_if_constant
from lightning_sim.functional._rounding import linear_kernel_rounding, over_largest, rows_of
from lightning_sim.functional.centered_kernel_alignment import alignment
from lightning_sim.functional.hsic import kernel_hsic_terms

__all__ = ["deconfounded_centered_kernel_alignment"]


def deconfounded_centered_kernel_alignment(x: Tensor, y: Tensor, inputs: Tensor, *, project_psd: bool = True) -> Tensor:
    r"""Linear CKA after the similarities among the inputs have been regressed out of both kernels.

    $K' = K - \alpha K_0$ with $\alpha = \langle K, K_0 \rangle / \langle K_0, K_0 \rangle$, where K and $K_0$
    are the linear kernels of centred `x` and `inputs` and all n^2 entries are regressed (without an
    intercept, which would be zero for centred kernels); L' likewise of `y`. The value is the biased CKA of K'
    and L'. `project_psd=True` sets the negative eigenvalues of both to zero before: a difference of kernels
    is not a kernel, and the projection is the nearest matrix that is one.

    Shapes: `x` (n, p1), `y` (n, p2), `inputs` (n, p0) -> (). Range: [0, 1] with the projection, [-1, 1]
    without; no units. Invariant to orthogonal maps, translations and isotropic scaling of each of the three
    and to joint permutations of the samples. Biased like the biased CKA.

    Cost: O(n^2 (p0 + p1 + p2)) time and O(n^2) memory; O(n^3) time with the projection.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        inputs: what the networks were given for these samples, flattened.
        project_psd: remove negative eigenvalues from the residual kernels.

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`; differentiable without the projection,
        detached with it. NaN with a warning that names the argument without variance, or the side whose
        kernel is a multiple of that of the inputs.

    Raises:
        ValueError: unless all are finite floating-point matrices with the same number of rows, at least 3 (of 2,
            `inputs` explain whatever the other two hold).

    References:
        Cui et al. 2022, "Deconfounded representation similarity for comparison of neural networks", section 3
        (dCKA). The kernels that are regressed are those of centred data; regressing uncentred kernels and
        centring afterwards, as some code does, gives other values.

    Example:
        >>> import torch
        >>> from lightning_sim import functional as similarity
        >>> draw = torch.Generator().manual_seed(0)
        >>> inputs = torch.randn(200, 10, generator=draw) * torch.linspace(0.1, 3, 10)
        >>> x, y = (inputs @ torch.randn(10, 20, generator=draw) for _ in range(2))  # two random networks
        >>> print(f"{similarity.centered_kernel_alignment(x, y):.2f}")
        0.80
        >>> print(f"{similarity.deconfounded_centered_kernel_alignment(x, y, inputs):.2f}")
        0.18
    """
    check_flag(project_psd, "project_psd")
    x, y = check_pair(x, y, minimum_rows=3)
    _, inputs = check_pair(x, inputs, names=("x", "inputs"))
    a, b, confounder = (over_largest([rows_of(z)])[0] for z in (x, y, inputs))
    if warn_if_constant(a.values, b.values):
        return x.new_tensor(torch.nan)
    if not bool(confounder.values.any()):
        return undefined("`inputs` has no variance over the samples", x)
    kernel_inputs = confounder.values @ confounder.values.T
    residuals, roundings = [], []
    for name, rows in (("x", a), ("y", b)):
        kernel = rows.values @ rows.values.T
        slope = (kernel * kernel_inputs).sum() / kernel_inputs.square().sum()
        residual = kernel - slope * kernel_inputs
        rounding = linear_kernel_rounding(rows) + slope.detach().square() * linear_kernel_rounding(confounder)
        if project_psd:
            residual = _nearest_kernel(residual)
        if not bool(residual.square().sum() > rounding):
            return undefined(f"`{name}` has no variance that `inputs` do not explain", x)
        residuals.append(residual)
        roundings.append(rounding)
    terms = kernel_hsic_terms(residuals[0], residuals[1], (roundings[0], roundings[1]), "biased", center=False)
    return alignment(terms, ("`x`", "`y`")).to(x.dtype)


@torch.no_grad()
def _nearest_kernel(matrix: Tensor) -> Tensor:
    """The nearest positive semidefinite matrix in Frobenius norm; detached: its derivative may not exist."""
    values, vectors = torch.linalg.eigh(matrix)
    nearest: Tensor = (vectors * values.clamp_min(0)) @ vectors.T
    return nearest
