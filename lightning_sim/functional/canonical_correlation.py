"""Canonical correlations of two representations: plain, of their principal components, and weighted."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_sim._centering import center_columns, unit_scale
from lightning_sim._checks import check_choice, check_pair, is_number, warn_if_constant
from lightning_sim.functional._column_space import column_space_basis

__all__ = ["canonical_correlation", "pwcca", "svcca"]

Summary = Literal["mean", "mean_squared"]


def canonical_correlation(
    x: Tensor,
    y: Tensor,
    *,
    summary: Summary = "mean",
    divisor: Literal["min_width", "min_rank"] = "min_width",
) -> Tensor:
    r"""Mean canonical correlation between the spaces that two sets of features span.

    With orthonormal bases $Q_x$, $Q_y$ of the centred columns, the canonical correlations $\rho_i$ are the
    singular values of $Q_x^T Q_y$, and the value is $\sum_i \rho_i / d$ or, for "mean_squared",
    $R^2 = \sum_i \rho_i^2 / d = \|Q_x^T Q_y\|_F^2 / d$.

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Range: [0, 1], no units, symmetric. Invariant to invertible
    linear maps and translations of either side and to joint permutations of the samples, hence blind to how
    strongly a direction is expressed. Biased upwards: independent Gaussians read an R^2 of
    max(p1, p2) / (n - 1), and once both ranks are n - 1 all correlations are 1 whatever the data are.

    Convention: columns are centred here. Rank is decided by a tolerance that follows the dtype, so that
    n <= p and rank-deficient input is right, where plain QR adds arbitrary directions. The divisor d is the
    smaller *width* unless `divisor` says otherwise, as in the paper: directions that a rank-deficient side
    lacks count as uncorrelated. Some code divides by the first width, or returns one minus the value.

    Cost: O(n (p1^2 + p2^2)) for n > p, O(n^2 (p1 + p2)) else, in float64 where the device has it.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        summary: "mean" of the correlations or "mean_squared".
        divisor: "min_width" for min(p1, p2), "min_rank" for the smaller rank of the centred data.

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`; differentiable where the rank is
        full. NaN with a warning that names a side without variance.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 2;
            for an unknown option.

    References:
        Kornblith et al. 2019, "Similarity of neural network representations revisited", Table 1 (CCA).

    Example:
        >>> import torch
        >>> from lightning_sim.functional import canonical_correlation
        >>> x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        >>> y = x @ torch.tensor([[1.0, 2.0], [0.0, 3.0], [0.0, 0.0], [5.0, 0.0]]) + 7
        >>> canonical_correlation(x, y)  # y spans a subspace of x
        tensor(1.)
    """
    check_choice(summary, "summary", ("mean", "mean_squared"))
    check_choice(divisor, "divisor", ("min_width", "min_rank"))
    x, y = check_pair(x, y)
    q_x, q_y = column_space_basis(x), column_space_basis(y)
    if warn_if_constant(q_x, q_y):
        return x.new_tensor(torch.nan)
    count = min(x.shape[1], y.shape[1]) if divisor == "min_width" else min(q_x.shape[1], q_y.shape[1])
    return _mean_correlation(q_x, q_y, summary, count).to(x.dtype)


def svcca(x: Tensor, y: Tensor, *, variance: float = 0.99, summary: Summary = "mean") -> Tensor:
    r"""Mean canonical correlation between the leading principal components of two representations.

    Each side is centred and reduced to its first k principal components, with the smallest k for which
    $\sum_{i \le k} s_i^2 \ge v \sum_i s_i^2$ (s: singular values, v: `variance`). The value is
    $\sum_i \rho_i / min(k_1, k_2)$ with the canonical correlations $\rho_i$ of what is left, squared for
    "mean_squared".

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Range: [0, 1], no units, symmetric. Invariant to orthogonal
    maps, isotropic scaling and translations of either side and to joint permutations of the samples; to
    invertible linear maps only if they keep the leading subspace. Jumps where k changes. Biased upwards
    when n is small beside k, like `canonical_correlation`.

    Convention: the share is of *squared* singular values of *centred* data. Some code cuts on unsquared or
    uncentred ones, or compares the share with the total variance, and keeps other components.

    Cost: O(n p min(n, p)) for the larger p, in float64 where the device has it.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        variance: share of the variance to keep on each side, in (0, 1]. A tail whose share is below the
            machine epsilon of the input's dtype is dropped even at 1.
        summary: "mean" of the correlations or "mean_squared".

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`; differentiable where k does not
        change and singular values are distinct. NaN with a warning that names a side without variance.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 2;
            for a `variance` outside (0, 1] or an unknown `summary`.

    References:
        Raghu et al. 2017, "SVCCA: singular vector canonical correlation analysis for deep learning dynamics
        and interpretability"; Kornblith et al. 2019, Table 1 (SVCCA).

    Example:
        >>> import torch
        >>> from lightning_sim.functional import svcca
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(100, 3, generator=generator)
        >>> weak = 0.01 * torch.randn(100, 3, generator=generator)
        >>> svcca(x, torch.cat([2 * x, weak], 1)).round(decimals=2)  # the weak directions are dropped
        tensor(1.)
    """
    check_choice(summary, "summary", ("mean", "mean_squared"))
    if not (is_number(variance) and 0 < variance <= 1):
        raise ValueError(f"`variance` must be a share in (0, 1], got {variance!r}")
    x, y = check_pair(x, y)
    if warn_if_constant(center_columns(x), center_columns(y)):
        return x.new_tensor(torch.nan)
    q_x, q_y = _leading_components(x, variance), _leading_components(y, variance)
    return _mean_correlation(q_x, q_y, summary, min(q_x.shape[1], q_y.shape[1])).to(x.dtype)


def pwcca(x: Tensor, y: Tensor, *, weights_from: Literal["x", "y"] = "x") -> Tensor:
    r"""Canonical correlations weighted by how much of one representation each canonical direction carries.

    $\sum_i \alpha_i \rho_i / \sum_i \alpha_i$ with $\alpha_i = \sum_j |\langle h_i, x_j \rangle|$, where
    $\rho_i$ are the canonical correlations, $h_i$ the canonical variates of the side `weights_from` (n
    numbers of unit norm) and $x_j$ the centred columns of that side.

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Range: [0, 1], no units, not symmetric. Invariant to isotropic
    scaling and translations of either side, to joint permutations of the samples and to invertible linear
    maps of the side that gives no weights; not even to rotations of the side that does, since $\alpha$ sums
    over its features. Ambiguous where canonical correlations coincide, except at 1. Biased upwards when n
    is small like `canonical_correlation`, and 1 whatever the data are once both ranks are n - 1.

    Convention: that of the paper, with centred columns and a weight for the first min(rank) variates only.
    Other code builds the directions without the inverse square root of the covariance, keeps the mean, sums
    over samples, or weights arbitrary directions where one side is wider; some returns one minus the value.

    Cost: O(n (p1^2 + p2^2)) for n > p, O(n^2 (p1 + p2)) else, in float64 where the device has it.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        weights_from: the side whose features weight the directions, "x" or "y".

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`; differentiable where the rank is
        full and the correlations are distinct. NaN with a warning that names a side without variance.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 2;
            for an unknown `weights_from`.

    References:
        Morcos, Raghu and Bengio 2018, "Insights on representational similarity in neural networks with
        canonical correlation", section 2; Kornblith et al. 2019, Table 1 (PWCCA).

    Example:
        >>> import torch
        >>> from lightning_sim.functional import canonical_correlation, pwcca
        >>> x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
        >>> strong, weak, other = x.split(1, 1)
        >>> a, b = torch.cat([9 * strong, weak], 1), torch.cat([strong, other], 1)
        >>> print(f"{canonical_correlation(a, b):.1f} {pwcca(a, b):.1f}")  # they share what is strong in a
        0.5 0.9
    """
    check_choice(weights_from, "weights_from", ("x", "y"))
    x, y = check_pair(x, y)
    q_x, q_y = column_space_basis(x), column_space_basis(y)
    if warn_if_constant(q_x, q_y):
        return x.new_tensor(torch.nan)
    u, correlations, vh = torch.linalg.svd(q_x.T @ q_y, full_matrices=False)
    variates, features = (q_x @ u, x) if weights_from == "x" else (q_y @ vh.T, y)
    weights = (variates.T @ unit_scale(center_columns(features))).abs().sum(1)
    value: Tensor = (weights * correlations).sum() / weights.sum()
    return value.clamp(max=1).to(x.dtype)


def _mean_correlation(q_x: Tensor, q_y: Tensor, summary: Summary, count: int) -> Tensor:
    """Sum of the (squared) canonical correlations of orthonormal bases (n, k1) and (n, k2), over `count`."""
    cross = q_x.T @ q_y
    total: Tensor = torch.linalg.svdvals(cross).sum() if summary == "mean" else cross.square().sum()
    return (total / count).clamp(max=1)


def _leading_components(x: Tensor, variance: float) -> Tensor:
    """Unit-norm principal components (n, k) of the centred `x` that hold the given share of its variance."""
    u: Tensor
    u, singular_values, _ = torch.linalg.svd(unit_scale(center_columns(x)), full_matrices=False)
    energy = singular_values.detach().square().cumsum(0)
    # The tail below the rounding of the input is not variance; without it a share of 1 would keep noise.
    sufficient = variance * (1 - torch.finfo(x.dtype).eps) * energy[-1]
    return u[:, : int((energy < sufficient).sum()) + 1]
