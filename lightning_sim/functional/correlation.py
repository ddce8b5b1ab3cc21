"""Correlation of two measures over checkpoints or pairs of networks, with its uncertainty."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from torch import Tensor

from lightning_sim._centering import center_columns, unit_scale
from lightning_sim._checks import check_pair, check_tensor, is_number, warn_if_constant
from lightning_sim.functional._ranks import average_ranks

__all__ = ["CorrelationResult", "pearson_correlation", "spearman_correlation"]


class CorrelationResult(NamedTuple):
    """A correlation with its confidence interval, its p-value and the line through the points.

    Attributes:
        value: the correlation, in [-1, 1].
        low: lower end of the confidence interval.
        high: upper end of the confidence interval.
        p_value: two-sided probability of a correlation at least this strong between unrelated measures.
        slope: of the least-squares line of b on a, in units of b per unit of a.
    """

    value: float
    low: float
    high: float
    p_value: float
    slope: float


def pearson_correlation(a: Tensor, b: Tensor, *, confidence: float = 0.95) -> CorrelationResult:
    r"""Linear correlation of two measures over n checkpoints or pairs of networks.

    $r = a_c^T b_c / (\|a_c\| \|b_c\|)$ of centred values, slope $a_c^T b_c / \|a_c\|^2$. The interval is
    Fisher's, $\tanh(artanh(r) \pm z / \sqrt{n - 3})$ with z the normal quantile of `confidence`; the p-value
    is that of $t = r \sqrt{(n - 2) / (1 - r^2)}$ under Student's distribution with n - 2 degrees of freedom.
    Both suppose n independent pairs that are jointly normal. Checkpoints of one run are not independent: over
    a trajectory the interval is too narrow and the p-value too small.

    Shapes: `a` (n,), `b` (n,). Range: [-1, 1], no units; the slope has the units of b over those of a. The
    correlation is invariant to increasing linear maps of either measure, and biased towards 0 by O(1 / n).
    Cost: O(n).

    Args:
        a: one measure, for example CKA to the final network.
        b: the other for the same checkpoints or pairs, for example the Jensen-Shannon divergence.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        `CorrelationResult` of Python floats. With 3 pairs the interval is [-1, 1]. All NaN, with a warning
        that names it, where a measure is constant.

    Raises:
        ValueError: unless both are finite floating-point vectors of one length, at least 3; for a confidence
            outside (0, 1).

    References:
        Fisher 1921, "On the probable error of a coefficient of correlation deduced from a small sample".

    Example:
        >>> import torch
        >>> from lightning_sim.functional import pearson_correlation
        >>> cka = torch.tensor([0.2, 0.4, 0.5, 0.7, 0.9])
        >>> divergence = torch.tensor([0.6, 0.5, 0.3, 0.25, 0.1])
        >>> result = pearson_correlation(cka, divergence)
        >>> print(f"{result.value:.2f} [{result.low:.2f}, {result.high:.2f}], slope {result.slope:.2f}")
        -0.97 [-1.00, -0.63], slope -0.72
    """
    a, b = _columns(a, b, confidence)
    return _correlation(a, b, a, b, confidence)


def spearman_correlation(a: Tensor, b: Tensor, *, confidence: float = 0.95) -> CorrelationResult:
    r"""Rank correlation of two measures over n checkpoints or pairs of networks.

    Pearson's correlation of the ranks, ties given their average rank. Interval and p-value are those of
    `pearson_correlation` with the rank correlation in the place of r. For ranks they are approximations: the
    interval is somewhat narrow where the correlation is strong (Bonett and Wright 2000 would widen it by
    sqrt(1 + r^2 / 2)), and the p-value is rough below n = 10. The slope is that of the values, not of the
    ranks.

    Shapes: `a` (n,), `b` (n,). Range: [-1, 1], no units. The correlation is invariant to increasing maps of
    either measure. Cost: O(n log n).

    Args:
        a: one measure, for example CKA to the final network.
        b: the other for the same checkpoints or pairs, for example the Jensen-Shannon divergence.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        `CorrelationResult` of Python floats. With 3 pairs the interval is [-1, 1]. All NaN, with a warning
        that names it, where a measure is constant.

    Raises:
        ValueError: unless both are finite floating-point vectors of one length, at least 3; for a confidence
            outside (0, 1).

    References:
        Spearman 1904; Fieller, Hartley and Pearson 1957 (Fisher's transformation of it).

    Example:
        >>> import torch
        >>> from lightning_sim.functional import spearman_correlation
        >>> cka = torch.tensor([0.2, 0.4, 0.5, 0.7, 0.9])
        >>> spearman_correlation(cka, cka**3).value
        1.0
    """
    a, b = _columns(a, b, confidence)
    ranks_a, ranks_b = (average_ranks(z[:, 0].contiguous())[:, None] for z in (a, b))
    return _correlation(a, b, ranks_a, ranks_b, confidence)


def _columns(a: Tensor, b: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """Both measures as checked columns (n, 1)."""
    if not (is_number(confidence) and 0 < confidence < 1):
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence!r}")
    for name, values in (("a", a), ("b", b)):
        check_tensor(values, name, "(n,)")
        if values.ndim != 1:
            raise ValueError(f"`{name}` must be a torch.Tensor of shape (n,), got {tuple(values.shape)}")
    return check_pair(a.detach()[:, None], b.detach()[:, None], names=("a", "b"), minimum_rows=3)


def _correlation(
    a: Tensor, b: Tensor, scores_a: Tensor, scores_b: Tensor, confidence: float
) -> CorrelationResult:
    """Pearson's correlation of the scores (n, 1), with the slope of the values (n, 1)."""
    a, b = center_columns(a), center_columns(b)
    if warn_if_constant(a, b, names=("a", "b"), stacklevel=4):
        return CorrelationResult(*[math.nan] * 5)
    x, y = unit_scale(center_columns(scores_a)), unit_scale(center_columns(scores_b))
    r = float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())
    r = max(-1.0, min(1.0, r))
    n = len(a)
    low, high = _fisher_interval(r, n, confidence)
    # Of Student's t with n - 2 degrees of freedom, at t = r sqrt((n - 2) / (1 - r^2)).
    p_value = _regularized_incomplete_beta((1 - r) * (1 + r), (n - 2) / 2, 0.5)
    scale = a.abs().max()  # the squares of very small values would vanish
    slope = float(((a / scale) * b).sum() / (a / scale).square().sum() / scale)
    return CorrelationResult(r, low, high, p_value, slope)


def _fisher_interval(r: float, n: int, confidence: float) -> tuple[float, float]:
    """Where the population correlation lies with the given confidence."""
    if n == 3:
        return -1.0, 1.0
    if abs(r) == 1:
        return r, r
    half_width = statistics.NormalDist().inv_cdf((1 + confidence) / 2) / math.sqrt(n - 3)
    return math.tanh(math.atanh(r) - half_width), math.tanh(math.atanh(r) + half_width)


def _regularized_incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), from the continued fraction of Abramowitz and Stegun 1964, 26.5.8."""
    if x in (0, 1):
        return x
    if x > (a + 1) / (a + b + 2):  # beyond, the fraction takes thousands of steps
        return 1 - _regularized_incomplete_beta(1 - x, b, a)
    log_factor = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # Evaluated from the front by ratios of successive numerators and of successive denominators (Lentz 1976).
    numerators = 1.0
    value = denominators = 1 / (1 - (a + b) * x / (a + 1))
    for m in range(1, 10_000):
        for coefficient in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            denominators = 1 / (1 + coefficient * denominators)
            numerators = 1 + coefficient / numerators
            value *= denominators * numerators
        if abs(denominators * numerators - 1) < 1e-15:
            break
    return math.exp(log_factor) / a * value
