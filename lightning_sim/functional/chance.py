"""What measures read when the samples of one network are paired with the wrong samples of the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lightning_sim._arguments import check_integer
from lightning_sim._centering import center_columns, unit_scale, widen
from lightning_sim._checks import check_choice, check_logits, check_pair
from lightning_sim.functional._column_space import column_space_basis
from lightning_sim.functional.canonical_correlation import canonical_correlation
from lightning_sim.functional.centered_kernel_alignment import centered_kernel_alignment
from lightning_sim.functional.error_consistency import right
from lightning_sim.functional.hsic import u_centered
from lightning_sim.functional.linear_regression import linear_regression_r2
from lightning_sim.functional.neighbors import mutual_knn
from lightning_sim.functional.normalized_bures_similarity import normalized_bures_similarity
from lightning_sim.functional.outputs import (
    jensen_shannon_divergence,
    per_sample_divergence,
    prediction_agreement,
    rank_correlation,
    standardized_ranks,
)

__all__ = ["Null", "alignment_skewness", "format_p", "kernel_cubes", "null_of", "permutation_null", "permuted"]

_BLOCK_ENTRIES = 2**22


class Null(NamedTuple):
    """A value beside what it would be for networks that share nothing about single samples.

    Attributes:
        value: of the measure.
        mean: over all pairings of the samples of one side with those of the other.
        standard_deviation: over them.
        skewness: over them; 0 where it is not known.
        z: standard deviations of the value above the mean.
        p_value: the share of pairings that read at least as similar: Pearson's type III distribution with this
            skewness, the normal one for 0. No p below 0.001 can be trusted; `p_text` prints none.
        adjusted: (value - mean) / (same - mean), 0 by chance and 1 for the same network: Cohen's kappa for agreement.
    """

    value: float
    mean: float
    standard_deviation: float
    skewness: float
    z: float
    p_value: float
    adjusted: float

    @property
    def p_text(self) -> str:
        """The p-value as it is printed."""
        return format_p(self.p_value)

    def __str__(self) -> str:
        p = self.p_text if self.p_text.startswith("<") else f"= {self.p_text}"
        return f"{self.value:.3f}, by chance {self.mean:.3f} ± {self.standard_deviation:.3f} (z = {self.z:.1f}, p {p})"


def format_p(p_value: float) -> str:
    """With three digits, and no more than can be trusted: "< 0.001"."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def permutation_null(
    x: Tensor,
    y: Tensor,
    *,
    measure: str | Callable[[Tensor, Tensor], Tensor] = "cka",
    labels: Tensor | None = None,
    permutations: int = 20,
) -> Null:
    r"""A measure beside its distribution over all pairings of the rows of `x` with those of `y`.

    The null means "no shared information about single samples", not "random network": untrained networks share the
    structure of the input and are far from it. In closed form, where p is a uniformly random permutation:

    - "cka" (linear, unbiased): mean 0, variance $2 / (n (n - 3))$ whatever the data are, and the third moment from
      $\sum A_{ij}^3$ and $tr A^3$ of the U-centred kernels (n >= 6);
    - "rv" (biased linear CKA), "squared_canonical_correlation" and "linear_regression_r2", all of them
      $tr(W P V P^T)$ up to a factor: mean $tr W \, tr V / (n - 1)$, variance of Kazi-Aoual et al. 1995. The skewness
      of "rv" is taken to be that of "cka", of the others to be 0;
    - "agreement", "jsd", "rank_correlation", "error_consistency" (the observed share; adjusted it is kappa), means
      over samples of some $c(x_i, y_i)$: the mean of the matrix $c_{ij} = c(x_i, y_j)$, and the variance
      $\sum d_{ij}^2 / (n^2 (n - 1))$ of its doubly centred d (Hoeffding 1951).

    From `permutations` random ones (the same every time): "nbs", "mutual_knn" (whose mean is k / (n - 1)), and any
    function of two matrices. So few leave a standard deviation uncertain by 1 / sqrt(2 permutations).

    Shapes: `x` (n, p1), `y` (n, p2), or logits (n, classes) twice. Cost: "cka" and "rv" O(n^3) time and O(n^2) memory;
    "jsd" O(n^2 classes); by permutations so many values.

    Args:
        x: representation of n samples, or the logits of one network.
        y: another of the same samples in the same order.
        measure: a name from above, or a function of `x` and `y` of which more is more similar, up to 1.
        labels: (n,), the right classes, for "error_consistency".
        permutations: how many, where there is no closed form; at least 2.

    Returns:
        `Null` of Python floats, NaN where the value is.

    Raises:
        ValueError: as the function of the measure does, and for an unknown measure.

    References:
        Kazi-Aoual et al. 1995, "Refined approximations to permutation tests for multivariate inference". Hoeffding
        1951, "A combinatorial central limit theorem".

    Example:
        >>> import torch
        >>> from lightning_sim.functional import permutation_null
        >>> x, noise = torch.randn(2, 100, 8, generator=torch.Generator().manual_seed(0))
        >>> print(permutation_null(x, noise))
        -0.002, by chance 0.000 ± 0.014 (z = -0.1, p = 0.534)
        >>> print(permutation_null(x, x + noise))
        0.530, by chance 0.000 ± 0.014 (z = 36.9, p < 0.001)
    """
    x, y = (z.detach() if isinstance(z, Tensor) else z for z in (x, y))
    if callable(measure):
        return _by_permutations(x, y, measure, permutations)
    check_choice(measure, "measure", ("cka", *_TRACES, *_MEANS, "error_consistency", *_PERMUTED))
    if measure in _PERMUTED:
        found = _by_permutations(x, y, _PERMUTED[measure], permutations)
        known = min(10, len(x) - 1) / (len(x) - 1) if measure == "mutual_knn" else found.mean
        return null_of(found.value, known, found.standard_deviation)
    if measure == "error_consistency":
        right_a, right_b = right(x, y, cast(Tensor, labels))  # which refuses None
        same = 1 - (right_a[:, None] - right_b).abs()
        return _of_mean(float(same.diagonal().mean()), same)
    if measure in _MEANS:
        function, matrix = _MEANS[measure]
        pairs = matrix(*check_logits(x, y))
        return _of_mean(float(function(x, y)), pairs, same=0.0 if measure == "jsd" else 1.0)
    value = float(centered_kernel_alignment(x, y) if measure == "cka" else _TRACES[measure](x, y))
    if math.isnan(value):
        return null_of(value, math.nan, math.nan)
    x, y = check_pair(x, y)
    a, b = unit_scale(center_columns(x)), unit_scale(center_columns(y))
    n = len(a)
    skewness = 0.0
    if measure in ("cka", "rv"):
        cubes = [kernel_cubes(u_centered(z @ z.T)) for z in (a, b)]
        skewness = alignment_skewness(cubes[0], cubes[1], n)
    if measure == "cka":
        return null_of(value, 0.0, math.sqrt(2 / (n * (n - 3))), skewness)
    scale = torch.linalg.matrix_norm(_square(a)) * torch.linalg.matrix_norm(_square(b))
    if measure == "squared_canonical_correlation":
        scale = a.new_tensor(min(a.shape[1], b.shape[1]))
        a, b = column_space_basis(x), column_space_basis(y)
    elif measure == "linear_regression_r2":
        scale, b = a.square().sum(), column_space_basis(y)
    mean, deviation = _trace_moments(a, b)
    return null_of(value, mean / float(scale), deviation / float(scale), skewness)


def null_of(value: float, mean: float, deviation: float, skewness: float = 0.0, *, same: float = 1.0) -> Null:
    """The `Null` of a value, which `same` is for two networks that are the same."""
    z = (value - mean) / deviation if deviation > 0 else math.nan
    side = 1.0 if same > mean else -1.0
    adjusted = (value - mean) / (same - mean) if same != mean else math.nan
    return Null(value, mean, deviation, skewness, z, _upper_tail(side * z, side * skewness), adjusted)


def permuted(n: int, permutations: int) -> list[Tensor]:
    """Permutations of n samples, the same every time."""
    check_integer(permutations, "permutations", least=2)
    generator = torch.Generator("cpu").manual_seed(0)
    return [torch.randperm(n, generator=generator, device="cpu") for _ in range(permutations)]


def kernel_cubes(kernel: Tensor) -> tuple[float, float, float]:
    """The sums of the squares and of the cubes of the entries, and the trace of the cube, of a symmetric (n, n)."""
    squares = kernel.square()
    return float(squares.sum()), float((squares * kernel).sum()), float(((kernel @ kernel) * kernel).sum())


def alignment_skewness(x: tuple[float, float, float], y: tuple[float, float, float], n: int) -> float:
    """Of unbiased CKA over all pairings, from the `kernel_cubes` of U-centred kernels; 0 for n < 6."""
    if n < 6:
        return 0.0
    (norm_x, s_x, t_x), (norm_y, s_y, t_y) = x, y
    third = 4 * (n**4 - 8 * n**3 + 19 * n**2 - 4 * n - 16) * s_x * s_y
    third -= 8 * (3 * n**2 - 15 * n + 16) * (s_x * t_y + t_x * s_y)
    third += 8 * (n**3 - 9 * n**2 + 26 * n - 22) * t_x * t_y
    third /= n * (n - 1) * (n - 2) * (n - 3) * (n - 4) * (n - 5)
    return third / math.sqrt(2 * norm_x * norm_y / (n * (n - 3))) ** 3


def _upper_tail(z: float, skewness: float) -> float:
    """P(Z >= z) of Pearson's type III with mean 0, variance 1 and this skewness; of the normal one near 0."""
    if math.isnan(z):
        return math.nan
    if abs(skewness) < 1e-4:
        return math.erfc(z / math.sqrt(2)) / 2
    k = 2 / abs(skewness)
    tail = torch.special.gammaincc if skewness > 0 else torch.special.gammainc
    limit = max(k * (k + math.copysign(z, z * skewness)), 0.0)
    return float(tail(*torch.tensor([k * k, limit], dtype=torch.float64, device="cpu")))


def _by_permutations(x: Tensor, y: Tensor, function: Callable[[Tensor, Tensor], Any], permutations: int) -> Null:
    value = float(function(x, y))
    values = [float(function(x, y[order])) for order in permuted(len(y), permutations)]
    moments = torch.tensor(values, dtype=torch.float64, device="cpu")
    return null_of(value, float(moments.mean()), float(moments.std()))


def _of_mean(value: float, pairs: Tensor, *, same: float = 1.0) -> Null:
    """Of the mean over samples of the diagonal of (n, n); rows and columns of samples without a value are left out."""
    defined = ~pairs.diagonal().isnan()
    pairs = pairs[defined][:, defined]
    n, mean = len(pairs), pairs.mean()
    centered = pairs - pairs.mean(0) - pairs.mean(1, keepdim=True) + mean
    deviation = (centered.square().sum() / (n**2 * max(n - 1, 1))).sqrt()
    return null_of(value, float(mean), float(deviation), same=same)


def _trace_moments(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of |a' P b|^2 over permutations P, of centred (n, p1) and (n, p2)."""
    n = len(a)
    (t, t2, s2), (u, u2, r2) = (
        (float(norms.sum()), float(_square(z).square().sum()), float(norms.square().sum()))
        for z, norms in ((z, z.square().sum(1)) for z in (a, b))
    )
    mean = t * u / (n - 1)
    if n < 3:
        return mean, math.nan
    variance = 2 * ((n - 1) * t2 - t**2) * ((n - 1) * u2 - u**2) / ((n - 1) ** 2 * (n + 1) * (n - 2))
    if n > 3:
        rest = (n * (n + 1) * s2 - (n - 1) * (t**2 + 2 * t2)) * (n * (n + 1) * r2 - (n - 1) * (u**2 + 2 * u2))
        variance += rest / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    return mean, math.sqrt(max(variance, 0.0))


def _square(z: Tensor) -> Tensor:
    """The smaller of z z' and z' z."""
    return z @ z.T if len(z) < z.shape[1] else z.T @ z


def _agreements(a: Tensor, b: Tensor) -> Tensor:
    return widen(a.argmax(1)[:, None] == b.argmax(1))


def _divergences(a: Tensor, b: Tensor) -> Tensor:
    rows = max(1, _BLOCK_ENTRIES // b.numel())
    return torch.cat([per_sample_divergence(block[:, None], b) for block in torch.split(a, rows)])


def _rank_correlations(a: Tensor, b: Tensor) -> Tensor:
    return standardized_ranks(a) @ standardized_ranks(b).T


_MEANS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "agreement": (prediction_agreement, _agreements),
    "jsd": (jensen_shannon_divergence, _divergences),
    "rank_correlation": (rank_correlation, _rank_correlations),
}
_TRACES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rv": lambda x, y: centered_kernel_alignment(x, y, estimator="biased"),
    "squared_canonical_correlation": lambda x, y: canonical_correlation(x, y, summary="mean_squared"),
    "linear_regression_r2": linear_regression_r2,
}
_PERMUTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nbs": normalized_bures_similarity,
    "mutual_knn": lambda x, y: mutual_knn(x, y, k=min(10, len(x) - 1)),
}
