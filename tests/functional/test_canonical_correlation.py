from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from lightning_sim.functional import canonical_correlation, pwcca, svcca
from tests.functional.representations import (
    assert_bad_input_is_refused,
    assert_constant_sides_are_named,
    assert_half_precision_matches,
    correlated_pair,
)
from tests.golden import Golden, reference_rows

SUMMARIES = ("mean", "mean_squared")
FUNCTIONS = {
    "cca_mean": canonical_correlation,
    "cca_mean_squared": partial(canonical_correlation, summary="mean_squared"),
    "cca_min_rank": partial(canonical_correlation, divisor="min_rank"),
    "svcca": svcca,
    "pwcca_x": pwcca,
    "pwcca_y": partial(pwcca, weights_from="y"),
}
GOLDEN = [
    row
    for measure in ("cca_mean_rho", "cca_r2", "svcca_mean_rho", "svcca_r2", "pwcca")
    for row in reference_rows(measure)
]


def reproduce(row: Golden, dtype: torch.dtype) -> Tensor:
    x, y = row.arrays(dtype)
    if row.measure == "pwcca":
        return pwcca(x, y, weights_from=row.params["weights_from"].lower())
    summary = "mean" if row.measure.endswith("mean_rho") else "mean_squared"
    if row.measure.startswith("svcca"):
        return svcca(x, y, variance=row.params["variance"], summary=summary)
    divisor = {"min_p": "min_width", "min_rank": "min_rank"}[row.params["divisor"]]
    return canonical_correlation(x, y, summary=summary, divisor=divisor)


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Canonical correlations through the principal angles of scipy."""
    angles = scipy.linalg.subspace_angles(x - x.mean(0), y - y.mean(0))
    return np.cos(angles)


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row.measure}-{row}")
def test_golden_values(row: Golden) -> None:
    # Including the ill-conditioned cases: the rank tolerance follows the dtype.
    row.assert_reproduced_in_both_dtypes(reproduce, atol=1e-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_constant_sides_are_named(name: str) -> None:
    assert_constant_sides_are_named(FUNCTIONS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_input_is_refused(name: str) -> None:
    assert_bad_input_is_refused(FUNCTIONS[name])


def test_unknown_options_are_refused() -> None:
    x, y = correlated_pair(20, 4, 3)
    with pytest.raises(ValueError, match="`summary` must be one of 'mean', 'mean_squared', got 'median'"):
        canonical_correlation(x, y, summary="median")
    with pytest.raises(ValueError, match="`divisor` must be one of 'min_width', 'min_rank', got 'p1'"):
        canonical_correlation(x, y, divisor="p1")
    with pytest.raises(ValueError, match="`summary`"):
        svcca(x, y, summary="median")
    with pytest.raises(ValueError, match="`weights_from` must be one of 'x', 'y', got 'X'"):
        pwcca(x, y, weights_from="X")
    for variance in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"`variance` must be a share in \(0, 1\]"):
            svcca(x, y, variance=variance)


@pytest.mark.parametrize("power", [1, 2])
def test_half_precision(power: int) -> None:
    def expected(x: np.ndarray, y: np.ndarray) -> float:
        return float((correlations(x, y) ** power).sum() / 4)

    assert_half_precision_matches(partial(canonical_correlation, summary=SUMMARIES[power - 1]), expected)


def test_half_precision_of_pwcca() -> None:
    def expected(x: np.ndarray, y: np.ndarray) -> float:
        x, y = x - x.mean(0), y - y.mean(0)
        q_x, q_y = scipy.linalg.orth(x), scipy.linalg.orth(y)
        u, rho, _ = np.linalg.svd(q_x.T @ q_y, full_matrices=False)
        alpha = np.abs((q_x @ u).T @ x).sum(1)
        return float(alpha @ rho / alpha.sum())

    assert_half_precision_matches(pwcca, expected)


def test_half_precision_of_svcca() -> None:
    def leading(x: np.ndarray) -> np.ndarray:
        u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
        share = np.cumsum(s**2) / np.sum(s**2)
        return u[:, : int(np.argmax(share >= 0.9)) + 1]

    def expected(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.linalg.svd(leading(x).T @ leading(y), compute_uv=False).mean())

    assert_half_precision_matches(partial(svcca, variance=0.9), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize("n", [25, 400])
def test_rank_deficient_features_with_a_mean_and_scales(n: int, offset: float, dtype: torch.dtype) -> None:
    # 40 features of rank 5, with a large mean and scales from 1e-4 to 1e4, span what their factors span.
    generator = torch.Generator().manual_seed(n)
    factors = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    other = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    other[:, :2] += 2 * factors[:, :2]
    scales = torch.logspace(-4, 4, 40, dtype=torch.float64)
    x = ((factors @ torch.randn(5, 40, generator=generator, dtype=torch.float64) + offset) * scales).to(dtype)
    expected = correlations(factors.numpy(), other.numpy())
    value = canonical_correlation(x, other.to(dtype), summary="mean_squared", divisor="min_rank")
    # Rounded to float32, data with mean 1000 determine their factors to about 1000 * 6e-8 only.
    assert float(value) == pytest.approx((expected**2).sum() / 5, rel=1e-3 if dtype == torch.float32 else 1e-9)
    by_width = canonical_correlation(x, other.to(dtype), summary="mean_squared")
    assert float(by_width) == pytest.approx((expected**2).sum() / 6, rel=1e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "p", "rank"), [(3000, 40, 5), (400, 300, 2)])
def test_layers_behind_a_bottleneck_have_its_rank(n: int, p: int, rank: int, dtype: torch.dtype) -> None:
    # The products are rounded in the dtype of the network, and so is their factorisation.
    generator = torch.Generator().manual_seed(0)
    bottleneck = torch.randn(n, rank, generator=generator, dtype=dtype)
    hidden = bottleneck @ torch.randn(rank, 500, generator=generator, dtype=dtype)
    x = hidden @ torch.randn(500, p, generator=generator, dtype=dtype) + 1
    y = bottleneck + torch.randn(n, rank, generator=generator, dtype=dtype)
    expected = correlations(bottleneck.double().numpy(), y.double().numpy()).mean()
    # A rank that is too high divides by more, one that is too low by less.
    assert float(canonical_correlation(x, y, divisor="min_rank")) == pytest.approx(expected, rel=1e-4)
    padded = torch.cat([y, torch.randn(n, p - rank, generator=generator, dtype=dtype)], 1)
    by_rank = canonical_correlation(x, padded, divisor="min_rank", summary="mean_squared")
    by_width = canonical_correlation(x, padded, summary="mean_squared")
    assert float(by_width / by_rank) == pytest.approx(rank / p, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_the_input_is_no_variance(dtype: torch.dtype) -> None:
    # Values that stray by ten units in the last place are more than a constant and less than a direction.
    generator = torch.Generator().manual_seed(0)
    strays = torch.randint(-10, 11, (30, 4), generator=generator) * torch.finfo(dtype).eps
    y = torch.randn(30, 3, generator=generator, dtype=dtype)
    for name in ("cca_mean", "cca_min_rank", "pwcca_x", "pwcca_y"):
        with pytest.warns(UserWarning, match="^`x` has no variance"):
            assert FUNCTIONS[name]((1 + strays).to(dtype), y).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_more_samples_than_features(dtype: torch.dtype) -> None:
    # 20 centred samples span 19 dimensions on both sides, whatever they are.
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, p, generator=generator).to(dtype) for p in (50, 30))
    assert float(canonical_correlation(x, y, divisor="min_rank")) == pytest.approx(1)
    assert float(canonical_correlation(x, y)) == pytest.approx(19 / 30)
    assert float(pwcca(x, y)) == pytest.approx(1)
    assert float(canonical_correlation(x[:, :7], y)) == pytest.approx(1)
    assert float(canonical_correlation(x[:, :20], y[:, :20])) == pytest.approx(19 / 20)


def test_duplicated_columns_are_one_direction() -> None:
    x, y = correlated_pair(50, 4, 3)
    doubled = torch.cat([x, x, x[:, :2]], 1)
    expected = correlations(x.numpy(), y.numpy()).mean()
    assert float(canonical_correlation(doubled, y)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weak_directions_count_as_much_as_strong_ones(dtype: torch.dtype) -> None:
    # A factor with a millionth of the variance of the others, mixed with them, is far above the rounding.
    x, y = correlated_pair(50, 4, 3)
    mixing = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weakened = (x * torch.tensor([1, 1, 1, 1e-3])) @ mixing
    expected = correlations(x.numpy(), y.numpy()).mean()
    assert float(canonical_correlation(weakened.to(dtype), y.to(dtype))) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_beyond_the_range_of_float32(scale: float) -> None:
    x, y = (z.float() for z in correlated_pair(50, 4, 3))
    for function in FUNCTIONS.values():
        assert float(function(x * scale, y)) == pytest.approx(float(function(x, y)), rel=1e-5)


def test_svcca_keeps_the_smallest_sufficient_number_of_components() -> None:
    # Variances 90, 9 and 1 in orthogonal directions: 0.90 needs one of them, 0.91 two, 0.99 two, 0.991 three.
    basis = np.random.default_rng(0).standard_normal((40, 5))
    basis = scipy.linalg.orth(basis - basis.mean(0))
    x = torch.from_numpy(basis[:, :3] * np.sqrt([90, 9, 1]))
    y = torch.from_numpy(basis[:, [0, 3, 4]])  # shares the first; its equal variances need all three
    for variance, components in ((0.8999, 1), (0.91, 2), (0.9899, 2), (0.9901, 3), (1.0, 3)):
        assert float(svcca(x, y, variance=variance)) == pytest.approx(1 / components, abs=1e-6)


def test_svcca_of_all_variance_is_cca_without_rounding_noise() -> None:
    x, y = correlated_pair(60, 5, 4)
    padded = torch.cat([x, x @ torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))], 1)
    expected = correlations(x.numpy(), y.numpy()).mean()
    for dtype in (torch.float32, torch.float64):
        assert float(svcca(padded.to(dtype), y.to(dtype), variance=1)) == pytest.approx(expected, rel=1e-4)


def test_pwcca_weights_by_the_named_side() -> None:
    # Orthonormal directions: a and b are shared, x holds a nine times as strongly, y b three times.
    basis = np.random.default_rng(0).standard_normal((40, 4))
    a, b, c, d = torch.from_numpy(scipy.linalg.orth(basis - basis.mean(0))).T[:, :, None]
    x = torch.cat([9 * a, b, c], 1)
    y = torch.cat([0.8 * a + 0.6 * d, 3 * b], 1)
    assert float(pwcca(x, y)) == pytest.approx((9 * 0.8 + 1 * 1) / 10)
    assert float(pwcca(x, y, weights_from="y")) == pytest.approx((1 * 0.8 + 3 * 1) / 4)


def test_bias_on_independent_data() -> None:
    # Mean squared correlation of independent Gaussians: max(p1, p2) / (n - 1), as the docstring warns.
    generator = torch.Generator().manual_seed(0)
    values = [
        canonical_correlation(
            torch.randn(50, 8, generator=generator),
            torch.randn(50, 5, generator=generator),
            summary="mean_squared",
        )
        for _ in range(200)
    ]
    # The standard error of the mean over 200 pairs is 0.003.
    assert float(torch.stack(values).mean()) == pytest.approx(8 / 49, abs=0.01)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name: str) -> None:
    x, y = (z.requires_grad_() for z in correlated_pair(12, 4, 3))
    assert torch.autograd.gradcheck(FUNCTIONS[name], (x, y))


@pytest.mark.parametrize("summary", SUMMARIES)
def test_gradients_beyond_full_rank_are_finite(summary: str) -> None:
    x, y = (z.requires_grad_() for z in correlated_pair(10, 14, 3))
    canonical_correlation(x, y, summary=summary).backward()
    assert x.grad is not None
    # The centred columns of x span everything, and keep doing so: nothing changes to first order.
    assert x.grad.abs().max() < 1e-9
