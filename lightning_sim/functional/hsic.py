"""The Hilbert-Schmidt independence criterion of two representations, linear kernel."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_sim._checks import check_choice, check_pair
from lightning_sim.functional._rounding import Rows, linear_kernel_rounding, rows_of

__all__ = ["hsic"]

Estimator = Literal["unbiased", "biased"]

# Up to so many samples their kernel is affordable where the cross-covariances do not suffice: some seconds.
_AFFORDABLE_KERNEL = 2**14
# Entries of the (rows, n) blocks of a kernel, a few of which exist at once: 32 MiB each in float64.
_BLOCK_ENTRIES = 2**22


def hsic(x: Tensor, y: Tensor, *, estimator: Estimator = "unbiased") -> Tensor:
    r"""Covariance of two tables of similarities: how far `x` and `y` agree on which samples are alike.

    With linear kernels $K = x x^T$, $L = y y^T$ (n x n), $H$ the centring matrix, and $K_0$, $L_0$ the
    kernels with their diagonals set to zero:

    - biased: $tr(K H L H) / (n - 1)^2 = \|x_c^T y_c\|_F^2 / (n - 1)^2$ with $x_c$, $y_c$ the centred data;
    - unbiased: $HSIC_1 = \frac{1}{n (n - 3)} [tr(K_0 L_0)
      + \frac{1^T K_0 1 \; 1^T L_0 1}{(n - 1)(n - 2)} - \frac{2}{n - 2} 1^T K_0 L_0 1]$.

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Units: the squared units of `x` times the squared units of `y`.
    Range: [0, inf) when biased; HSIC_1 may be negative. A constant representation gives 0: it depends on
    nothing.

    Invariant to translations and orthogonal maps of either side and to joint permutations of the samples;
    scaling a side by c scales the value by c^2. The biased estimator exceeds the population value by O(1/n),
    times a factor that grows with the widths; the expectation of HSIC_1 is the population value. HSIC_1 does
    not depend on centring algebraically, but loses its digits on uncentred features with large means: both
    centre first.

    Cost: O(n (p1 + p2)^2) time and O((p1 + p2)^2) memory, or O(n^2 (p1 + p2)) and O(n^2) where that is
    cheaper; in float64 where the device has it.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        estimator: "unbiased" (HSIC_1) or "biased".

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`, differentiable.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 4 (2
            when biased).

    References:
        Gretton et al. 2005, eq. 9 (biased). Song et al. 2012, "Feature selection via dependence
        maximization", eq. 5 (HSIC_1). Kornblith et al. 2019, eq. 3.

    Example:
        >>> import torch
        >>> from lightning_sim.functional import hsic
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])
        >>> hsic(x, x, estimator="biased")  # the squared variance
        tensor(6.2500)
        >>> hsic(x, x[[3, 0, 4, 1, 2]])
        tensor(-0.5667)
    """
    check_choice(estimator, "estimator", ("unbiased", "biased"))
    x, y = check_pair(x, y, minimum_rows=minimum_rows(estimator))
    terms = linear_hsic_terms(rows_of(x), rows_of(y), estimator)
    return terms.cross.to(x.dtype)


class HsicTerms(NamedTuple):
    """HSIC of a pair and of each side with itself, and the value below which a self-term is rounding only."""

    cross: Tensor
    self_x: Tensor
    self_y: Tensor
    floor_x: Tensor
    floor_y: Tensor


def minimum_rows(estimator: Estimator) -> int:
    """HSIC_1 divides by n - 3, the biased estimator by n - 1."""
    return 4 if estimator == "unbiased" else 2


def linear_hsic_terms(a: Rows, b: Rows, estimator: Estimator) -> HsicTerms:
    """The terms for linear kernels of (n, p1) and (n, p2), which must be centred to be unbiased."""
    (n, p1), (_, p2) = a.values.shape, b.values.shape
    roundings = (linear_kernel_rounding(a), linear_kernel_rounding(b))
    if p1 * p1 + p2 * p2 + p1 * p2 > n * (p1 + p2):
        kernels = (a.values @ a.values.T, b.values @ b.values.T)
        return kernel_hsic_terms(*kernels, roundings, estimator, center=False)
    pairs = ((a.values, b.values), (a.values, a.values), (b.values, b.values))
    squares = torch.stack([(u.T @ v).square().sum() for u, v in pairs])
    floors = torch.stack(roundings)
    if estimator == "biased":
        return HsicTerms(*(squares / (n - 1) ** 2), *(floors / (n - 1) ** 2))
    # The rows of a centred kernel sum to zero. Without the diagonal they sum to minus the diagonal, so every
    # term of HSIC_1 follows from the cross-covariance and the squared norms of the samples.
    norms = torch.stack([a.values.square().sum(1), b.values.square().sum(1)])
    traces = norms.sum(1)
    sums = sums_of_hsic_1(squares, norms @ norms.T, traces, n)
    lost = covariance_rounding(traces.detach(), n)
    # A thousand times what decides between a value and none: three more digits are right without the kernel.
    if n <= _AFFORDABLE_KERNEL and bool((sums[1:] < 2**10 * lost).any()):
        sums = row_sums(a.values, b.values).sum(1)
    else:
        floors = torch.maximum(floors, lost)
    return HsicTerms(*(sums / (n * (n - 3))), *(floors / (n * (n - 3))))


def sums_of_hsic_1(squares: Tensor, norms_norms: Tensor, traces: Tensor, n: int | Tensor) -> Tensor:
    r"""n (n - 3) HSIC_1 of x with y, x with x and y with y, (3,), from sums over centred samples.

    Args:
        squares: $\|X^T Y\|_F^2$, $\|X^T X\|_F^2$, $\|Y^T Y\|_F^2$.
        norms_norms: the sums of the products of $|x_i|^2$ and $|y_i|^2$, (2, 2).
        traces: the sums of $|x_i|^2$ and of $|y_i|^2$.
        n: the number of samples.
    """
    diagonals = torch.stack([norms_norms[0, 1], norms_norms[0, 0], norms_norms[1, 1]])
    products = torch.stack([traces[0] * traces[1], traces[0].square(), traces[1].square()])
    return squares - n / (n - 2) * diagonals + products / ((n - 1) * (n - 2))


def covariance_rounding(traces: Tensor, n: int | Tensor) -> Tensor:
    """Below what n (n - 3) HSIC_1 of a side with itself has lost its digits as a difference of sums over samples.

    Where most samples are equal, all additions round the same way: measured up to n eps of the squared trace. Three
    digits are to be left.
    """
    return 2**10 * n * torch.finfo(traces.dtype).eps * traces.square()


def kernel_hsic_terms(
    kernel_x: Tensor,
    kernel_y: Tensor,
    roundings: tuple[Tensor, Tensor],
    estimator: Estimator,
    *,
    center: bool = True,
) -> HsicTerms:
    """The terms for kernels (n, n) and the squared norms of their rounding errors.

    `center=False` if they are centred, or compared without it.
    """
    n = kernel_x.shape[0]
    if estimator == "unbiased":
        kernel_x, kernel_y = u_centered(kernel_x), u_centered(kernel_y)
        count = n * (n - 3)
    else:
        if center:
            kernel_x, kernel_y = center_kernel(kernel_x), center_kernel(kernel_y)
        count = (n - 1) ** 2
    return HsicTerms(
        (kernel_x * kernel_y).sum() / count,
        kernel_x.square().sum() / count,
        kernel_y.square().sum() / count,
        roundings[0] / count,
        roundings[1] / count,
    )


def center_kernel(kernel: Tensor) -> Tensor:
    """H K H of a symmetric kernel (n, n): its rows and columns sum to zero."""
    means = kernel.mean(0)
    return kernel - means - means[:, None] + means.mean()


def u_centered(kernel: Tensor) -> Tensor:
    """The U-centred kernel (n, n): zero on the diagonal, and its rows sum to zero.

    The sum of the products of two of these is n (n - 3) HSIC_1 (Szekely and Rizzo 2014). Subtracting before
    anything is squared cancels less than the three terms of HSIC_1, and keeps HSIC_1(K, K) >= 0.
    """
    n = kernel.shape[0]
    diagonal = torch.eye(n, dtype=torch.bool, device=kernel.device)
    kernel = kernel.masked_fill(diagonal, 0)
    means = kernel.sum(0) / (n - 2)
    return (kernel - means - means[:, None] + means.sum() / (n - 1)).masked_fill(diagonal, 0)


def row_sums(x: Tensor, y: Tensor) -> Tensor:
    """Row sums (3, n) of products of the U-centred kernels, x with y, x with x and y with y.

    Of centred (n, p1) and (n, p2); every sample's part in n (n - 3) HSIC_1. From blocks: subtracting before anything is
    squared keeps the digits that the difference of sums loses.
    """
    n = len(x)
    norms = torch.stack([x.square().sum(1), y.square().sum(1)])
    means, mean = norms / (n - 2), norms.sum(1) / ((n - 1) * (n - 2))
    sums = []
    for block in torch.split(torch.arange(n, device=x.device), max(1, _BLOCK_ENTRIES // n)):
        a, b = (
            (rows[block] @ rows.T + means[side][block, None] + means[side] - mean[side]).scatter(1, block[:, None], 0)
            for side, rows in enumerate((x, y))
        )
        sums.append(torch.stack([(a * b).sum(1), a.square().sum(1), b.square().sum(1)]))
    return torch.cat(sums, 1)
