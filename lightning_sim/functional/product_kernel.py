"""Similarity of features and gradients at once: kernels multiplied entry by entry."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_sim._centering import center_columns, undefined, unit_scale, widen
from lightning_sim._checks import check_choice, check_pair
from lightning_sim.functional.centered_kernel_alignment import alignment
from lightning_sim.functional.hsic import Estimator, center_kernel, kernel_hsic_terms, minimum_rows
from lightning_sim.functional.normalized_bures_similarity import bures_ratio

__all__ = ["product_kernel_similarity"]


def product_kernel_similarity(
    features_x: Tensor,
    gradients_x: Tensor,
    features_y: Tensor,
    gradients_y: Tensor,
    *,
    measure: Literal["cka", "nbs"] = "cka",
    estimator: Estimator = "unbiased",
    center_factors: bool = False,
) -> Tensor:
    r"""CKA or NBS of two networks by what they compute and by what would change it.

    $K = (F_x F_x^T) \circ (G_x G_x^T)$ with features $F_x$, gradients $G_x$ and the entrywise product; L
    likewise of y. K is the linear kernel of the outer products $g_i \otimes f_i$, for a linear layer the
    gradient of a sample with respect to its weights. The product comes first and is centred afterwards, K ->
    H K H; `center_factors=True` centres the columns of F and G before as well, which gives another kernel
    (neither follows from the other).

    Shapes: all (n, p) with widths of their own -> (). Range and bias are those of `centered_kernel_alignment`
    (`measure="cka"`, `estimator`) and `normalized_bures_similarity` (`measure="nbs"`, which has no
    estimator). No units. Invariant to orthogonal maps and isotropic scaling of each argument and to joint
    permutations of the samples; to translations only with `center_factors=True`.

    Cost: O(n^2 p) time and O(n^2) memory; O(n^3) time for "nbs". In float64 where the device has it.

    Args:
        features_x: what a layer of one network computes for n samples.
        gradients_x: gradients with respect to that layer's output for the same samples.
        features_y: features of the other network.
        gradients_y: gradients of the other network.
        measure: "cka" or "nbs".
        estimator: "unbiased" or "biased", of CKA.
        center_factors: centre features and gradients before they are multiplied.

    Returns:
        A scalar in the wider of float32 and the dtypes of the arguments; differentiable for "cka", detached
        for "nbs". NaN with a warning that names the side whose kernel has no variance.

    Raises:
        ValueError: unless all are finite floating-point matrices with the same number of rows, at least 4 (2
            for "nbs" and biased CKA); for an unknown option.

    References:
        Tang et al. 2020, "Similarity of Neural Networks with Gradients", section 3.

    Example:
        >>> import torch
        >>> from lightning_sim.functional import product_kernel_similarity
        >>> draw = torch.Generator().manual_seed(0)
        >>> features, gradients = torch.randn(50, 8, generator=draw), torch.randn(50, 4, generator=draw)
        >>> product_kernel_similarity(features, gradients, features.flip(1), -2 * gradients)
        tensor(1.)
    """
    check_choice(measure, "measure", ("cka", "nbs"))
    check_choice(estimator, "estimator", ("unbiased", "biased"))
    names = ("features_x", "gradients_x", "features_y", "gradients_y")
    sides = ("`features_x` times `gradients_x`", "`features_y` times `gradients_y`")
    rows = 2 if measure == "nbs" else minimum_rows(estimator)
    factors = [features_x, gradients_x, features_y, gradients_y]
    for i in (1, 2, 3):
        first = factors[0], factors[i]
        factors[0], factors[i] = check_pair(*first, names=(names[0], names[i]), minimum_rows=rows)
    dtype = factors[0].dtype
    prepared = [unit_scale(center_columns(z) if center_factors else widen(z)) for z in factors]
    kernel_x, kernel_y = ((f @ f.T) * (g @ g.T) for f, g in (prepared[:2], prepared[2:]))
    if measure == "cka":
        return alignment(kernel_hsic_terms(kernel_x, kernel_y, estimator), sides).to(dtype)
    factor_x, factor_y = _centered_factor(kernel_x), _centered_factor(kernel_y)
    constant = [side for side, z in zip(sides, (factor_x, factor_y), strict=True) if z.shape[1] == 0]
    if constant:
        return undefined(f"the kernel of {' and of '.join(constant)} has no variance", factors[0])
    return bures_ratio(factor_x, factor_y).to(dtype)


@torch.no_grad()
def _centered_factor(kernel: Tensor) -> Tensor:
    """Columns a (n, rank) with a a' = H K H, from the eigenvalues above rounding; detached."""
    values, vectors = torch.linalg.eigh(center_kernel(kernel))
    above = values > 8 * torch.finfo(kernel.dtype).eps * kernel.square().sum().sqrt()
    factor: Tensor = vectors[:, above] * values[above].sqrt()
    return factor
