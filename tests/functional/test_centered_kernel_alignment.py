from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from torch import Tensor

from lightning_sim.functional import centered_kernel_alignment
from tests.functional.representations import (
    HALF_CASES,
    assert_bad_input_is_refused,
    assert_constant_sides_are_named,
    assert_half_precision_matches,
    correlated_pair,
)
from tests.functional.test_hsic import WIDTHS, hsic_by_definition
from tests.golden import Golden, reference_rows

ESTIMATORS = ("unbiased", "biased")
RULES = {"median_dist_pairs": "median", "median_sq_full": "median_squared"}
GOLDEN = [row for measure in ("cka_linear", "cka_linear_angle", "cka_rbf") for row in reference_rows(measure)]
FUNCTIONS = {
    f"{kernel}_{estimator}": partial(centered_kernel_alignment, kernel=kernel, estimator=estimator)
    for kernel in ("linear", "rbf")
    for estimator in ESTIMATORS
}


def reproduce(row: Golden, dtype: torch.dtype) -> Tensor:
    x, y = row.arrays(dtype)[-2:]  # the cases of the deconfounded measure come with the inputs first
    estimator = "unbiased" if row.params.get("unbiased") else "biased"
    if row.measure != "cka_rbf":
        value = centered_kernel_alignment(x, y, estimator=estimator, center=row.params["center"])
        return value.arccos() if row.measure == "cka_linear_angle" else value
    rule, fraction = RULES[row.params["bandwidth"]], row.params["fraction"]
    return centered_kernel_alignment(
        x, y, kernel="rbf", estimator=estimator, bandwidth=fraction, bandwidth_rule=rule
    )


def cka_by_definition(x: np.ndarray, y: np.ndarray, estimator: str) -> float:
    xy, xx, yy = (hsic_by_definition(a, b, estimator) for a, b in ((x, y), (x, x), (y, y)))
    return xy / math.sqrt(xx * yy)


def rbf_cka_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """The biased value with the median of the distances of distinct pairs as bandwidth."""
    centred = []
    for z in (x, y):
        distances = scipy.spatial.distance.pdist(z - z.mean(0))
        squared = scipy.spatial.distance.squareform(distances) ** 2
        kernel = np.exp(-squared / (2 * np.median(distances) ** 2))
        h = np.eye(len(z)) - 1 / len(z)
        centred.append(h @ kernel @ h)
    return float((centred[0] * centred[1]).sum() / np.linalg.norm(centred[0]) / np.linalg.norm(centred[1]))


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row.measure}-{row}")
def test_golden_values(row: Golden) -> None:
    # Including the ill-conditioned cases: sums are taken in float64. Near 1 the arc cosine magnifies what
    # float32 cannot hold.
    row.assert_reproduced_in_both_dtypes(reproduce, atol=5e-4 if row.measure == "cka_linear_angle" else 1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("offset", [0, 1000])
def test_definition_on_every_route(widths: tuple[int, int], estimator: str, offset: float) -> None:
    x, y = correlated_pair(25, *widths)
    expected = cka_by_definition(x.numpy(), y.numpy(), estimator)
    value = centered_kernel_alignment(x + offset, y - offset, estimator=estimator)
    assert float(value) == pytest.approx(expected, rel=1e-9)


def test_centring_changes_the_biased_value_only() -> None:
    for kernel in ("linear", "rbf"):
        for widths in ((4, 3), (50, 40)):
            x, y = correlated_pair(25, *widths)
            values = {
                (estimator, center): float(
                    centered_kernel_alignment(x + 1, y, kernel=kernel, estimator=estimator, center=center)
                )
                for estimator in ESTIMATORS
                for center in (True, False)
            }
            assert values["unbiased", True] == pytest.approx(values["unbiased", False], rel=1e-12)
            assert abs(values["biased", True] - values["biased", False]) > 1e-3


@pytest.mark.parametrize("name", FUNCTIONS)
def test_constant_sides_are_named(name: str) -> None:
    assert_constant_sides_are_named(FUNCTIONS[name])


def test_a_constant_has_an_uncentred_value() -> None:
    # Every kernel entry is 0.49 * 3, so the value is the share of the other kernel in the direction of ones.
    _, y = correlated_pair(20, 3, 4)
    kernel = (y @ y.T).numpy()
    value = centered_kernel_alignment(
        torch.full((20, 3), 0.7, dtype=torch.float64), y, estimator="biased", center=False
    )
    assert float(value) == pytest.approx(kernel.sum() / (20 * np.linalg.norm(kernel)), rel=1e-12)


@pytest.mark.parametrize("width", [2, 50], ids=["features", "kernels"])
def test_a_single_different_sample_leaves_no_unbiased_variance(width: int) -> None:
    # Between the others all similarities are equal, and between them and the one as well.
    _, y = correlated_pair(20, 2, width)
    for seed in range(20):  # rounding may leave HSIC_1 above or below zero
        common, other = correlated_pair(2, width, 1, seed=seed)[0]
        x = common.expand(20, width).clone()
        x[3] = other
        for sides, name in (((x, y), "x"), ((y, x), "y")):
            with pytest.warns(UserWarning, match=f"`{name}` has no variance") as caught:
                assert centered_kernel_alignment(*sides).isnan()
            assert [warning.filename for warning in caught] == [__file__]
        assert 0 < centered_kernel_alignment(x, y, estimator="biased") < 1


def test_samples_at_equal_distances_leave_no_unbiased_variance() -> None:
    with pytest.warns(UserWarning, match="`x` and `y` has no variance"):
        assert centered_kernel_alignment(torch.eye(10), torch.eye(10)).isnan()
    assert float(centered_kernel_alignment(torch.eye(10), torch.eye(10), estimator="biased")) == 1


@pytest.mark.parametrize("rule", RULES.values())
@pytest.mark.parametrize("width", [3, 100])
def test_rbf_without_a_bandwidth(rule: str, width: int) -> None:
    # 16 of 20 samples are equal, hence 120 of 190 pairs; rounding must not pass for their distance.
    x, y = correlated_pair(20, width, 4)
    x[4:] = x[4]
    with pytest.warns(UserWarning, match="most samples of `x` are equal"):
        assert centered_kernel_alignment(x, y, kernel="rbf", bandwidth_rule=rule).isnan()


@pytest.mark.parametrize("rule", RULES.values())
def test_two_samples_are_always_alike(rule: str) -> None:
    # Of the four squared distances the middle two are 0 and d^2.
    value = centered_kernel_alignment(
        torch.tensor([[0.0], [2.0]]),
        torch.tensor([[7.0, 1.0], [3.0, 5.0]]),
        kernel="rbf",
        estimator="biased",
        bandwidth_rule=rule,
    )
    assert float(value) == pytest.approx(1)


def test_rbf_approaches_linear_with_the_bandwidth() -> None:
    # exp(-d^2 / 2 s^2) = 1 - d^2 / 2 s^2 + ..., whose centred second term is the linear kernel.
    x, y = correlated_pair(30, 4, 3)
    for estimator in ESTIMATORS:
        wide = centered_kernel_alignment(x, y, kernel="rbf", estimator=estimator, bandwidth=1000)
        linear = centered_kernel_alignment(x, y, estimator=estimator)
        assert float(wide) == pytest.approx(float(linear), abs=1e-5)


def test_bias_on_independent_data() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, biased in ((64, 0.97), (512, 0.80)):
        x, y = (torch.randn(n, 2048, generator=generator) for _ in range(2))
        assert float(centered_kernel_alignment(x, y, estimator="biased")) == pytest.approx(biased, abs=0.005)
        # HSIC_1 of unrelated data has standard deviation of about sqrt(2) / n, relative to its self-terms.
        assert abs(float(centered_kernel_alignment(x, y))) < 4 * 2**0.5 / n


def test_half_precision() -> None:
    for estimator in ESTIMATORS:
        reference = partial(cka_by_definition, estimator=estimator)
        assert_half_precision_matches(partial(centered_kernel_alignment, estimator=estimator), reference)


def test_half_precision_of_rbf() -> None:
    measured = 0
    for dtype, mean, scale in HALF_CASES:
        x, y = ((mean + scale * z / z.std()).to(dtype) for z in correlated_pair(60, 6, 4, seed=3))
        medians = [np.median(scipy.spatial.distance.pdist(z.double())) for z in (x, y)]
        if min(medians) == 0:  # most rows have been rounded to the same values
            with pytest.warns(UserWarning, match="no variance|most samples of `[xy]` are equal"):
                assert centered_kernel_alignment(x, y, kernel="rbf").isnan()
            continue
        value = centered_kernel_alignment(x, y, kernel="rbf", estimator="biased")
        assert value.dtype == torch.float32
        expected = rbf_cka_by_definition(x.double().numpy(), y.double().numpy())
        assert float(value) == pytest.approx(expected, rel=5e-3), (dtype, mean, scale)
        measured += 1
    assert measured >= 8


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_beyond_the_range_of_float32(scale: float) -> None:
    x, y = (z.float() for z in correlated_pair(50, 4, 3))
    for function in FUNCTIONS.values():
        assert float(function(x * scale, y)) == pytest.approx(float(function(x, y)), rel=1e-5)


@pytest.mark.parametrize("widths", [(4, 3), (50, 40)])
def test_autocast_does_not_reach_the_products(widths: tuple[int, int]) -> None:
    x, y = (z.float() for z in correlated_pair(25, *widths))
    expected = centered_kernel_alignment(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(centered_kernel_alignment(x, y), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("widths", [(3, 2), (14, 9)])
def test_gradients(name: str, widths: tuple[int, int]) -> None:
    x, y = (z.requires_grad_() for z in correlated_pair(8, *widths))
    assert torch.autograd.gradcheck(FUNCTIONS[name], (x, y))


def test_gradient_of_identical_sides_is_zero() -> None:
    # The value is at its maximum, where a training penalty must not receive NaN.
    x = correlated_pair(20, 4, 3)[0].float().requires_grad_()
    centered_kernel_alignment(x, x.detach()).backward()
    assert x.grad is not None
    assert float(x.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_input_is_refused(name: str) -> None:
    assert_bad_input_is_refused(FUNCTIONS[name])


def test_options_are_checked() -> None:
    x, y = correlated_pair(3, 4, 2)
    with pytest.raises(ValueError, match=r"`x` and `y` need at least 4 rows.*\(3, 4\) and \(3, 2\)"):
        centered_kernel_alignment(x, y)
    with pytest.raises(ValueError, match="`kernel` must be one of 'linear', 'rbf', got 'poly'"):
        centered_kernel_alignment(x, y, kernel="poly")
    with pytest.raises(ValueError, match="`estimator` must be one of"):
        centered_kernel_alignment(x, y, estimator="debiased")
    with pytest.raises(ValueError, match="`bandwidth_rule` must be one of"):
        centered_kernel_alignment(x, y, bandwidth_rule="mean")
    for bandwidth in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="`bandwidth` must be a positive fraction"):
            centered_kernel_alignment(x, y, kernel="rbf", bandwidth=bandwidth)
