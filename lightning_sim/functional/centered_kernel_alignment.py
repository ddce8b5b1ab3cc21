"""Centred kernel alignment of two representations, linear and RBF kernels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_sim._centering import undefined
from lightning_sim._checks import check_choice, check_flag, check_pair, is_number, warn_if_constant
from lightning_sim.functional._rounding import Rows, over_largest, rows_of
from lightning_sim.functional.hsic import (
    Estimator,
    HsicTerms,
    kernel_hsic_terms,
    linear_hsic_terms,
    minimum_rows,
)

__all__ = ["centered_kernel_alignment"]

BandwidthRule = Literal["median", "median_squared"]

# How far beyond 1 rounding may take the ratio of terms of which three digits are right.
_MOST_ROUNDING = 2.0**-10


def centered_kernel_alignment(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Literal["linear", "rbf"] = "linear",
    estimator: Estimator = "unbiased",
    center: bool = True,
    bandwidth: float = 1.0,
    bandwidth_rule: BandwidthRule = "median",
) -> Tensor:
    r"""Cosine of two centred kernels: 1 when `x` and `y` arrange the samples alike, up to rotation and scale.

    $CKA = HSIC(K, L) / \sqrt{HSIC(K, K) \, HSIC(L, L)}$, with $K_{ij} = x_i^T x_j$ (linear) or
    $K_{ij} = \exp(-\|x_i - x_j\|^2 / (2 \sigma^2))$ (rbf), and L likewise of `y`. Each kernel has its own
    bandwidth:

    - `bandwidth_rule="median"`: sigma = bandwidth * median distance over the n (n - 1) / 2 distinct pairs, as
      the text of Kornblith et al. says;
    - `bandwidth_rule="median_squared"`: sigma^2 = bandwidth^2 * median of the squared distances over all n^2
      pairs including the n zeros of a sample with itself, as their code does. The value is close for large n.

    The median of an even number of values is the mean of the middle two (`torch.median` takes the lower).

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Range: [0, 1] when biased; [-1, 1] when unbiased, around 0 for
    unrelated representations. No units.

    Invariant to orthogonal maps, translations and isotropic scaling of either side (linear and rbf) and to
    joint permutations of the samples; not to invertible linear maps. `center=False` compares the kernels as
    they are (the biased alignment of Cristianini et al. 2002, not invariant to translations of a linear
    kernel); HSIC_1 does not depend on centring, so with `estimator="unbiased"` the flag changes nothing. The
    biased estimator grows towards 1 with p / n: independent Gaussians of width 2048 read 0.97 at n = 64 and
    0.80 at n = 512. The ratio of unbiased terms reads 0 there; as a ratio its own bias is of order 1 / n.
    `estimate` gives its standard error, `permutation_null` its chance level, `carriers` the samples it stands on.

    Cost, linear: O(n (p1 + p2)^2) time and O((p1 + p2)^2) memory, or O(n^2 (p1 + p2)) and O(n^2) where that
    is cheaper; rbf: the latter, and O(n^2 log n) for the median. In float64 where the device has it.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        kernel: "linear" or "rbf".
        estimator: "unbiased" (ratio of HSIC_1) or "biased".
        center: centre the kernels; without effect on the unbiased estimator.
        bandwidth: fraction of the median distance, for "rbf" (Kornblith et al. report 0.2, 0.4 and 0.8).
        bandwidth_rule: what the fraction is of, see above.

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`, differentiable. NaN with a warning
        that names the side which has no variance above rounding (with "unbiased", also a side whose pairs are
        all equally similar, such as one where a single sample differs; with "rbf", also one of which most
        samples coincide).

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 4 (2
            when biased); for an unknown option or a bandwidth that is not positive.

    References:
        Kornblith et al. 2019, "Similarity of neural network representations revisited", eq. 4 and Table 1.
        Song et al. 2012, eq. 5 (HSIC_1). Murphy et al. 2024 (the unbiased ratio).

    Example:
        >>> import torch
        >>> from lightning_sim.functional import centered_kernel_alignment
        >>> x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
        >>> centered_kernel_alignment(x, 3 * x @ rotation + 5)
        tensor(1.)
        >>> noise = torch.randn(100, 400, generator=torch.Generator().manual_seed(2))
        >>> for estimator in ("unbiased", "biased"):
        ...     print(f"{centered_kernel_alignment(x, noise, estimator=estimator):.2f}")
        -0.02
        0.23
    """
    check_choice(kernel, "kernel", ("linear", "rbf"))
    check_choice(estimator, "estimator", ("unbiased", "biased"))
    check_choice(bandwidth_rule, "bandwidth_rule", ("median", "median_squared"))
    check_flag(center, "center")
    if not (is_number(bandwidth) and bandwidth > 0):
        raise ValueError(f"`bandwidth` must be a positive fraction of the median distance, got {bandwidth!r}")
    x, y = check_pair(x, y, minimum_rows=minimum_rows(estimator))
    # Centring changes neither HSIC_1 nor a distance, but keeps the digits that a large mean would take.
    centered = center or estimator == "unbiased" or kernel == "rbf"
    a, b = (over_largest([rows_of(z, center=centered)])[0] for z in (x, y))
    if warn_if_constant(a.values, b.values):
        return x.new_tensor(torch.nan)
    if kernel == "linear":
        return alignment(linear_hsic_terms(a, b, estimator), ("`x`", "`y`")).to(x.dtype)
    kernels, roundings = [], []
    for name, rows in (("x", a), ("y", b)):
        distances, errors = _squared_distances(rows)
        variance = _median_of_squares(distances, bandwidth_rule)
        if not bool(variance > 0):
            return undefined(f"most samples of `{name}` are equal and their median distance is 0", x)
        gaussians = torch.exp(distances / (-2 * bandwidth**2 * variance))
        kernels.append(gaussians)
        roundings.append((gaussians.detach().square() * errors).sum() / (2 * bandwidth**2 * variance.detach()) ** 2)
    terms = kernel_hsic_terms(kernels[0], kernels[1], (roundings[0], roundings[1]), estimator, center=center)
    return alignment(terms, ("`x`", "`y`")).to(x.dtype)


def alignment(terms: HsicTerms, names: tuple[str, str]) -> Tensor:
    """The ratio of HSIC terms; NaN with a warning where a self-term is nothing but rounding."""
    self_terms = ((terms.self_x, terms.floor_x), (terms.self_y, terms.floor_y))
    alike = [name for name, (term, floor) in zip(names, self_terms, strict=True) if not bool(term > floor)]
    if alike:
        sides = " and ".join(alike)
        message = (
            f"similarity among the samples of {sides} has no variance above rounding: all are alike, or all but one, "
            "or all equally far apart"
        )
        return undefined(message, terms.cross, stacklevel=4)
    ratio = terms.cross / (terms.self_x.sqrt() * terms.self_y.sqrt())
    if not bool(ratio.abs() < 1 + _MOST_ROUNDING):
        message = f"rounding takes the similarity of {' and '.join(names)} to {float(ratio):.3g}, beyond 1"
        return undefined(message, terms.cross, stacklevel=4)
    # By Cauchy-Schwarz the ratio is in range, and what rounding adds would make its arc cosine NaN.
    return ratio.clamp(-1, 1)


def _squared_distances(rows: Rows) -> tuple[Tensor, Tensor]:
    """Squared distances (n, n) of rows (n, p), with exact zeros between equal rows, and their squared errors."""
    # Around the median, from which one sample far away does not take the others.
    values = rows.values - rows.values.detach().median(0).values
    norms = values.square().sum(1)
    sums = norms + norms[:, None]
    squared = sums - 2 * values @ values.T
    computed = 8 * torch.finfo(values.dtype).eps * sums.detach()
    # Equal rows come out as rounding, which would pass for a median distance.
    squared = squared.masked_fill(squared <= computed, 0)
    # Entries with the errors e add sum e_iq^2 + e_jq^2 to (x_i - x_j)^2, with the variance 4 sum (x_iq - x_jq)^2
    # (e_iq^2 + e_jq^2); twice of it as in `linear_kernel_rounding`.
    values, errors = values.detach(), rows.errors.square()
    half = values.square() @ errors.T - 2 * (values * errors) @ values.T + (values.square() * errors).sum(1)
    added = errors.sum(1) + errors.sum(1)[:, None]
    carried = 8 * (half + half.T) + 4 * added.square()
    return squared, (carried + computed.square()).fill_diagonal_(0)


def _median_of_squares(distances: Tensor, rule: BandwidthRule) -> Tensor:
    """The square of the distance that `rule` takes for typical, from squared distances (n, n)."""
    n = distances.shape[0]
    upper = torch.triu_indices(n, n, 1, device=distances.device)
    pairs = distances[upper[0], upper[1]].sort().values
    if rule == "median":
        low, high = pairs[(len(pairs) - 1) // 2], pairs[len(pairs) // 2]
        return (low + high + 2 * (low * high).sqrt()) / 4
    # In order, the n * n entries are n zeros and every pair twice.
    low, high = (pairs[(i - n) // 2] if i >= n else pairs[0] * 0 for i in ((n * n - 1) // 2, n * n // 2))
    return (low + high) / 2
