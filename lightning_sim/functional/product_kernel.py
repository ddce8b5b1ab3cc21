"""Similarity of features and gradients at once: kernels multiplied entry by entry."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_sim._centering import undefined
from lightning_sim._checks import check_choice, check_flag, check_pair
from lightning_sim.functional._rounding import Rows, over_largest, product_rounding, rows_of
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
        ValueError: unless all are finite floating-point matrices with the same number of rows, at least 4 (for
            "nbs" and biased CKA 2, or 3 of centred factors); for an unknown option.

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
    check_flag(center_factors, "center_factors")
    names = ("features_x", "gradients_x", "features_y", "gradients_y")
    sides = ("`features_x` times `gradients_x`", "`features_y` times `gradients_y`")
    rows = max(2 + center_factors, minimum_rows(estimator) if measure == "cka" else 2)
    factors = [features_x, gradients_x, features_y, gradients_y]
    for i in (1, 2, 3):
        first = factors[0], factors[i]
        factors[0], factors[i] = check_pair(*first, names=(names[0], names[i]), minimum_rows=rows)
    dtype = factors[0].dtype
    prepared = [over_largest([rows_of(z, center=center_factors)])[0] for z in factors]
    x, y = _ProductKernel.of(*prepared[:2]), _ProductKernel.of(*prepared[2:])
    constant = [side for side, kernel in zip(sides, (x, y), strict=True) if not kernel.varies]
    if constant:
        return undefined(f"the kernel of {' and of '.join(constant)} has no variance above rounding", factors[0])
    if measure == "cka":
        terms = kernel_hsic_terms(x.kernel, y.kernel, (x.rounding, y.rounding), estimator)
        return alignment(terms, sides).to(dtype)
    return bures_ratio(_centered_factor(x.kernel), _centered_factor(y.kernel)).to(dtype)


class _ProductKernel(NamedTuple):
    """K (n, n), the squared norm of its rounding errors beside the diagonal, and whether it has any variance."""

    kernel: Tensor
    rounding: Tensor
    varies: bool

    @classmethod
    def of(cls, features: Rows, gradients: Rows) -> _ProductKernel:
        kernel = (features.values @ features.values.T) * (gradients.values @ gradients.values.T)
        trace, mean = kernel.detach().diagonal().sum(), kernel.detach().mean()
        computed = product_rounding(features.values, trace) + product_rounding(gradients.values, trace)
        # K is the linear kernel of the outer products z, whose errors are those of one factor times the other.
        variance = trace - len(kernel) * mean
        squared_errors = sum(
            (one.errors.square().sum(1) * other.values.detach().square().sum(1)).sum()
            for one, other in ((features, gradients), (gradients, features))
        )
        # `linear_kernel_rounding` of z, whose entries are too many to look at: as if all were alike.
        directions = _directions(features) * _directions(gradients)
        carried = 4 * (variance + squared_errors) * squared_errors / directions
        # Constants up to 8 units in the last place have a variance of 8^2 / 12 of them.
        return cls(kernel, carried + computed**2, bool(variance > computed + 6 * squared_errors))


def _directions(rows: Rows) -> Tensor:
    """Over how many columns the features are spread: all if they are equally large, 1 if one is much the largest."""
    squares = rows.values.detach().square().sum(0)
    return squares.sum().square() / squares.square().sum()


@torch.no_grad()
def _centered_factor(kernel: Tensor) -> Tensor:
    """Columns a (n, rank) with a a' = H K H, from the eigenvalues above rounding; detached."""
    values, vectors = torch.linalg.eigh(center_kernel(kernel))
    above = values > 8 * torch.finfo(kernel.dtype).eps * kernel.square().sum().sqrt()
    factor: Tensor = vectors[:, above] * values[above].sqrt()
    return factor
