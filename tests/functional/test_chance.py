"""Chance levels: by all permutations, by many of them, and by the distributions of SciPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from lightning_sim.functional import (
    canonical_correlation,
    centered_kernel_alignment,
    error_consistency,
    jensen_shannon_divergence,
    linear_regression_r2,
    mutual_knn,
    normalized_bures_similarity,
    permutation_null,
    prediction_agreement,
    rank_correlation,
)
from lightning_sim.functional.chance import format_p, null_of
from lightning_sim.functional.hsic import u_centered
from tests.digits import features, logits, shifted_digits
from tests.functional.representations import correlated_pair

OF_FEATURES: dict[str, Callable[..., Tensor]] = {
    "cka": centered_kernel_alignment,
    "rv": lambda x, y: centered_kernel_alignment(x, y, estimator="biased"),
    "squared_canonical_correlation": lambda x, y: canonical_correlation(x, y, summary="mean_squared"),
    "linear_regression_r2": linear_regression_r2,
}
OF_LOGITS: dict[str, Callable[..., Tensor]] = {
    "agreement": prediction_agreement,
    "jsd": jensen_shannon_divergence,
    "rank_correlation": rank_correlation,
}
SEVEN = np.array(list(itertools.permutations(range(7))))


def moments(values: Any) -> tuple[float, float, float]:
    return float(np.mean(values)), float(np.std(values)), float(scipy.stats.skew(values))


def projector(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(0)
    return x @ np.linalg.pinv(x)


def of_all_pairings(measure: str, x: Tensor, y: Tensor) -> np.ndarray:
    """The measure of 7 samples for each of the 5,040 pairings, from matrices over samples."""
    if measure in OF_LOGITS:
        pairs = np.array([[float(OF_LOGITS[measure](a[None], b[None])) for b in y] for a in x])
        return pairs[np.arange(7), SEVEN].mean(1)
    a, b = ((z - z.mean(0)).numpy() for z in (x, y))
    w, v = a @ a.T, b @ b.T
    if measure == "cka":
        w, v = (u_centered(torch.from_numpy(z)).numpy() for z in (w, v))
    if measure in ("squared_canonical_correlation", "linear_regression_r2"):
        v = projector(b)
    if measure == "squared_canonical_correlation":
        w, scale = projector(a), min(a.shape[1], b.shape[1])
    elif measure == "linear_regression_r2":
        scale = np.trace(w)
    else:
        scale = np.linalg.norm(w) * np.linalg.norm(v)
    return (w * v[SEVEN[:, :, None], SEVEN[:, None]]).sum((1, 2)) / scale


@pytest.mark.parametrize("measure", [*OF_FEATURES, *OF_LOGITS])
def test_moments_are_those_of_all_permutations_of_seven(measure: str) -> None:
    x, y = correlated_pair(7, 3, 2) if measure in OF_FEATURES else (z[::2311] for z in logits())
    values = of_all_pairings(measure, x, y)
    mean, deviation, skewness = moments(values)
    found = permutation_null(x, y, measure=measure)
    assert found.value == float((OF_FEATURES | OF_LOGITS)[measure](x, y))
    assert found.value == pytest.approx(values[0], abs=1e-12)
    assert found.mean == pytest.approx(mean, abs=1e-10)
    assert found.standard_deviation == pytest.approx(deviation, abs=1e-10)
    if measure == "cka":
        assert found.skewness == pytest.approx(skewness, abs=1e-10)
    assert found.z == pytest.approx((found.value - mean) / deviation, rel=1e-8)
    assert found.adjusted == pytest.approx((found.value - mean) / ((measure != "jsd") - mean), rel=1e-8)


def test_nearest_neighbors_have_the_mean_of_all_permutations() -> None:
    x, y = correlated_pair(7, 3, 2)
    assert permutation_null(x, y, measure="mutual_knn").mean == 1.0  # of six others, the six nearest
    x, y = correlated_pair(12, 3, 2)
    found = permutation_null(x, y, measure="mutual_knn", permutations=200)
    assert found.mean == pytest.approx(10 / 11, abs=1e-12)
    assert permutation_null(x, y, measure=mutual_knn, permutations=200).mean == pytest.approx(10 / 11, abs=0.01)


def test_adjusted_agreement_is_kappa() -> None:
    a, b = (z[::100] for z in logits())
    labels = shifted_digits()[1][::100]
    expected = cohen_kappa_score(a.argmax(1), b.argmax(1))
    assert permutation_null(a, b, measure="agreement").adjusted == pytest.approx(expected, abs=1e-12)
    found = permutation_null(a, b, measure="error_consistency", labels=labels)
    consistency = error_consistency(a, b, labels)
    assert found.adjusted == pytest.approx(float(consistency.value), abs=1e-12)
    assert found.mean == pytest.approx(float(consistency.expected), abs=1e-12)
    assert found.value == pytest.approx(float(consistency.observed), abs=1e-12)


@pytest.mark.parametrize("skewness", [2.0, 0.7, 1e-3, 0.0, -0.3, -1.9])
def test_p_values_are_those_of_pearson(skewness: float) -> None:
    for z in (-3.0, -1.1, -0.2, 0.0, 0.4, 2.5, 6.0, 30.0):
        found = null_of(z, 0.0, 1.0, skewness, same=50.0).p_value
        assert found == pytest.approx(float(scipy.stats.pearson3.sf(z, skewness)), abs=1e-9)
        # Where the same network reads least, similar is what lies below.
        assert null_of(-z, 0.0, 1.0, -skewness, same=-50.0).p_value == pytest.approx(found, abs=1e-12)


def test_small_p_values_are_not_printed() -> None:
    x, noise = (z[:200] for z in correlated_pair(400, 4, 4))
    related = permutation_null(x, x + noise)
    assert related.p_text == "< 0.001"
    assert str(related).endswith("p < 0.001)")
    assert format_p(0.001) == "0.001"
    assert format_p(0.04567) == "0.046"
    identical = logits()[0][:50]
    assert permutation_null(identical, identical, measure="jsd").p_text == "< 0.001"


def test_what_has_no_closed_form_is_permuted() -> None:
    x, y = (features()[name][::40].float() for name in "fh")
    found = permutation_null(x, y, measure="nbs")
    again = permutation_null(x, y, measure=normalized_bures_similarity)
    assert found == again
    many = permutation_null(x, y, measure="nbs", permutations=100)
    assert found.mean == pytest.approx(many.mean, abs=4 * many.standard_deviation / 20**0.5)
    assert found.adjusted == pytest.approx((found.value - found.mean) / (1 - found.mean))
    with pytest.raises(ValueError, match="`permutations` must be an integer, at least 2"):
        permutation_null(x, y, measure="nbs", permutations=1)
    with pytest.raises(ValueError, match="`measure` must be one of 'cka', 'rv'"):
        permutation_null(x, y, measure="mmd")


def test_no_value_is_by_chance() -> None:
    x, y = correlated_pair(20, 3, 2)
    with pytest.warns(UserWarning, match="`y` has no variance"):
        found = permutation_null(x, torch.ones_like(y))
    assert math.isnan(found.z)
    assert math.isnan(found.p_value)


def test_gradients_are_left_alone_and_two_samples_have_no_spread() -> None:
    x, y = (z.requires_grad_() for z in correlated_pair(20, 3, 2))
    for measure in ("cka", "nbs", "rv", mutual_knn):
        assert permutation_null(x, y, measure=measure).z > 0
    assert math.isnan(permutation_null(x[:2], y[:2], measure="rv").z)


def test_samples_that_rank_nothing_are_left_out() -> None:
    a, b = (z[::400].clone() for z in logits())
    expected = permutation_null(a[3:], b[3:], measure="rank_correlation")
    a[:2], b[2] = 1, 0
    with pytest.warns(UserWarning, match="3 of 41 samples, left out"):
        found = permutation_null(a, b, measure="rank_correlation")
    assert found == pytest.approx(expected, abs=1e-12)


def permuted_alignments(x: Tensor, y: Tensor, count: int) -> Any:
    """Unbiased CKA of random pairings, from the U-centred kernels."""
    a, b = (u_centered((z - z.mean(0)) @ (z - z.mean(0)).T) for z in (x, y))
    a, b = (kernel / torch.linalg.matrix_norm(kernel) for kernel in (a, b))
    generator = torch.Generator().manual_seed(1)
    orders = (torch.randperm(len(x), generator=generator) for _ in range(count))
    return np.array([float((a * b[order][:, order]).sum()) for order in orders])


def assert_moments_match(n: int, pair: str, count: int, deviation: float, skewness: float) -> None:
    rows = torch.randperm(len(features()["f"]), generator=torch.Generator().manual_seed(n))[:n]
    x, y = (features()[name][rows] for name in pair)
    found = permutation_null(x, y)
    values = permuted_alignments(x, y, count)
    drawn = scipy.stats.skew(values)
    above = [
        float((values >= scipy.stats.pearson3.isf(level, found.skewness) * found.standard_deviation).mean())
        for level in (0.05, 0.01)
    ]
    print(
        f"{pair} n={n}: sd {values.std():.6f} against {found.standard_deviation:.6f}, skewness {drawn:.3f} against "
        f"{found.skewness:.3f}, true level at .05 {above[0]:.4f}, at .01 {above[1]:.4f}"
    )
    assert values.std() == pytest.approx(found.standard_deviation, rel=deviation)
    assert drawn == pytest.approx(found.skewness, abs=skewness)


def test_moments_are_near_those_of_permutations() -> None:
    assert_moments_match(100, "fk", 2000, deviation=0.1, skewness=0.4)


@pytest.mark.study
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("pair", ["fh", "fk", "hk"])
def test_moments_are_those_of_ten_thousand_permutations(pair: str) -> None:
    assert_moments_match(400, pair, 10_000, deviation=0.05, skewness=0.15)


@pytest.mark.study
@pytest.mark.parametrize("measure", ["rv", "agreement", "jsd", "rank_correlation"])
def test_other_moments_are_those_of_permutations(measure: str) -> None:
    population = tuple(features()[name] for name in "fk") if measure == "rv" else logits()
    x, y = (z[::80] for z in population)
    generator = torch.Generator().manual_seed(0)
    function = (OF_FEATURES | OF_LOGITS)[measure]
    values = [float(function(x, y[torch.randperm(len(y), generator=generator)])) for _ in range(2000)]
    found = permutation_null(x, y, measure=measure)
    print(f"{measure}: {np.mean(values):.5f} ± {np.std(values):.5f}, skewness {scipy.stats.skew(values):.3f}; {found}")
    assert np.mean(values) == pytest.approx(found.mean, abs=5 * found.standard_deviation / 2000**0.5)
    assert np.std(values) == pytest.approx(found.standard_deviation, rel=0.08)
    assert scipy.stats.skew(values) == pytest.approx(found.skewness, abs=0.25)
