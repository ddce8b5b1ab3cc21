from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from lightning_sim.functional import CorrelationResult, pearson_correlation, spearman_correlation
from lightning_sim.functional.correlation import _regularized_incomplete_beta

Correlation = Callable[..., CorrelationResult]
BOTH = pytest.mark.parametrize("correlation", [pearson_correlation, spearman_correlation])


def values(n: int, strength: float, seed: int, *, ties: bool = False) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    a = generator.standard_normal(n)
    b = strength * a + generator.standard_normal(n)
    if ties:
        a, b = a.round(), b.round()
    return torch.from_numpy(a), torch.from_numpy(b)


@pytest.mark.parametrize("n", [4, 5, 10, 31, 200])
@pytest.mark.parametrize("strength", [-3.0, 0.0, 0.5])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_pearson_against_scipy(n: int, strength: float, confidence: float) -> None:
    a, b = values(n, strength, seed=n)
    result = pearson_correlation(a, b, confidence=confidence)
    expected = scipy.stats.pearsonr(a, b)
    interval = expected.confidence_interval(confidence)
    assert result == pytest.approx(
        (
            expected.statistic,
            interval.low,
            interval.high,
            expected.pvalue,
            scipy.stats.linregress(a, b).slope,
        ),
        rel=1e-9,
    )
    assert all(type(field) is float for field in result)


@pytest.mark.parametrize("n", [10, 31, 200])
@pytest.mark.parametrize("strength", [-3.0, 0.0, 0.5])
@pytest.mark.parametrize("ties", [False, True])
def test_spearman_against_scipy(n: int, strength: float, ties: bool) -> None:
    a, b = values(n, strength, seed=n, ties=ties)
    result = spearman_correlation(a, b)
    expected = scipy.stats.spearmanr(a, b)
    assert result.value == pytest.approx(expected.statistic, rel=1e-12)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-8)
    assert result.slope == pytest.approx(scipy.stats.linregress(a, b).slope, rel=1e-12)
    half_width = scipy.stats.norm.ppf(0.975) / math.sqrt(n - 3)
    assert (result.low, result.high) == pytest.approx(
        np.tanh(np.arctanh(expected.statistic) + half_width * np.array([-1, 1])), rel=1e-9
    )


def test_pearson_interval_covers_as_often_as_it_says() -> None:
    # Correlation 0.8 of Gaussian pairs.
    covered = 0
    for seed in range(2000):
        result = pearson_correlation(*values(12, 4 / 3, seed), confidence=0.9)
        covered += result.low < 0.8 < result.high
    assert covered / 2000 == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 2000))


def test_p_values_are_uniform_between_unrelated_measures() -> None:
    p_values = [pearson_correlation(*values(6, 0, seed)).p_value for seed in range(1000)]
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.001


@BOTH
def test_perfect_correlation(correlation: Correlation) -> None:
    a = torch.tensor([0.1, 0.4, 0.5, 0.9])
    assert correlation(a, -2 * a) == pytest.approx((-1, -1, -1, 0, -2), abs=1e-6)
    assert correlation(a, a) == pytest.approx((1, 1, 1, 0, 1), abs=1e-6)


@BOTH
def test_three_pairs_say_nothing_about_the_interval(correlation: Correlation) -> None:
    result = correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0]))
    # With one degree of freedom t is Cauchy: p = 1 - 2 / pi arcsin r, and arcsin 1/2 = pi / 6.
    assert result == pytest.approx((0.5, -1, 1, 2 / 3, 0.5), rel=1e-6)


@BOTH
def test_scale_and_offset_of_float32(correlation: Correlation) -> None:
    a, b = (z.float() for z in values(20, 1.0, seed=0))
    expected = correlation(a, b)
    result = correlation(1e-30 * a, 1e30 * b)
    assert result[:4] == pytest.approx(expected[:4], rel=1e-5)
    assert result.slope == pytest.approx(expected.slope * 1e60, rel=1e-5)
    shifted = correlation(a + 1000, b)  # rounds a to multiples of 6e-5
    assert shifted[:3] == pytest.approx(expected[:3], abs=1e-3)


@BOTH
def test_a_constant_measure_is_named(correlation: Correlation) -> None:
    a, _ = values(10, 0, seed=0)
    constant = torch.full((10,), 0.7, dtype=torch.float64)
    for pair, message in (
        ((constant, a), "^`a` has no variance"),
        ((a, constant), "^`b` has no variance"),
        ((a, constant * (1 + 1e-16 * a)), "^`b` has no variance"),
    ):
        with pytest.warns(UserWarning, match=message) as caught:
            result = correlation(*pair)
        assert all(math.isnan(field) for field in result)
        assert [warning.filename for warning in caught] == [__file__]


@BOTH
def test_bad_input_is_refused(correlation: Correlation) -> None:
    a, b = values(10, 0, seed=0)
    with pytest.raises(ValueError, match=r"`a` and `b`.*\(10, 1\) and \(9, 1\)"):
        correlation(a, b[:9])
    with pytest.raises(ValueError, match=r"`a` and `b` need at least 3 rows"):
        correlation(a[:2], b[:2])
    with pytest.raises(ValueError, match=r"`b` must be a torch.Tensor of shape \(n,\), got \(10, 1\)"):
        correlation(a, b[:, None])
    with pytest.raises(ValueError, match=r"`a` must be a torch.Tensor of shape \(n,\), got list"):
        correlation([1.0, 2.0, 3.0], b)
    with pytest.raises(ValueError, match="`a` must be floating-point"):
        correlation(torch.arange(10), b)
    with pytest.raises(ValueError, match=r"`b` of shape.*holds NaN"):
        correlation(a, b.masked_fill(b == b.max(), torch.nan))
    for confidence in (0, 1, 95, float("nan")):
        with pytest.raises(ValueError, match=r"`confidence` must be between 0 and 1"):
            correlation(a, b, confidence=confidence)


@pytest.mark.parametrize("degrees", [1, 2, 3, 8, 100, 100_000])
def test_incomplete_beta_against_scipy(degrees: int) -> None:
    for x in (0.0, 1e-12, 1e-3, 0.2, 0.5, 0.9, 1 - 1e-6, 1 - 1e-12, 1.0):
        expected = scipy.special.betainc(degrees / 2, 0.5, x)
        assert _regularized_incomplete_beta(x, degrees / 2, 0.5) == pytest.approx(
            expected, rel=1e-9, abs=1e-300
        )
