"""How the measures of representations relate to each other, on random data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.spatial
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_sim.functional import (
    angular_procrustes_distance,
    canonical_correlation,
    centered_kernel_alignment,
    hsic,
    linear_regression_r2,
    minibatch_centered_kernel_alignment,
    normalized_bures_similarity,
    procrustes_distance,
    svcca,
)
from tests.functional.test_properties import (
    MEASURES,
    ORTHOGONAL,
    PAIR,
    arguments_of,
    bounded,
    mapped,
    seeds,
)


@bounded
@given(seed=seeds, factor=st.floats(0.01, 100))
def test_hsic_scales_with_the_squares(seed: int, factor: float) -> None:
    x, y = arguments_of(PAIR, np.random.default_rng(seed))
    for estimator in ("unbiased", "biased"):
        value = hsic(factor * x, y, estimator=estimator)
        torch.testing.assert_close(value, factor**2 * hsic(x, y, estimator=estimator), rtol=1e-9, atol=0)


def squared_kernel_nbs(k1: np.ndarray, k2: np.ndarray) -> float:
    """NBS of the kernels K1^2 and K2^2 by definition, tr((K1 K2^2 K1)^(1/2)) / sqrt(tr K1^2 tr K2^2)."""
    eigenvalues = np.linalg.eigvalsh(k1 @ k2 @ k2 @ k1)
    return float(np.sqrt(eigenvalues.clip(0)).sum() / math.sqrt(np.trace(k1 @ k1) * np.trace(k2 @ k2)))


@settings(bounded, max_examples=50)
@given(seed=seeds)
def test_cka_is_at_most_nbs_of_the_squared_kernels(seed: int) -> None:
    # Tang et al. 2020, eq. 14. The features of K1^2 = K1 K1' are the columns of the centred kernel K1.
    x, y = arguments_of(PAIR, np.random.default_rng(seed))
    k1, k2 = ((z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y))
    nbs = float(normalized_bures_similarity(k1, k2))
    assert nbs == pytest.approx(squared_kernel_nbs(k1.numpy(), k2.numpy()), abs=1e-6)
    assert float(centered_kernel_alignment(x, y, estimator="biased")) <= nbs + 1e-12
    assert float(centered_kernel_alignment(x, x, estimator="biased")) == pytest.approx(
        float(normalized_bures_similarity(k1, k1))
    )


@bounded
@given(seed=seeds)
def test_nbs_and_procrustes_are_one_measure(seed: int) -> None:
    x, y = arguments_of(PAIR, np.random.default_rng(seed))
    nbs = float(normalized_bures_similarity(x, y))
    width = max(x.shape[1], y.shape[1])
    padded = (np.pad(z.numpy(), ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    _, _, disparity = scipy.spatial.procrustes(*padded)
    assert nbs == pytest.approx(math.sqrt(1 - disparity), rel=1e-10)
    assert float(procrustes_distance(x, y, squared=True)) == pytest.approx(2 * (1 - nbs), rel=1e-9)
    assert float(angular_procrustes_distance(x, y)) == pytest.approx(math.acos(nbs), rel=1e-9)


@pytest.mark.parametrize("name", ["procrustes", "procrustes_size_and_shape", "procrustes_angular"])
@bounded
@given(seed=seeds)
def test_triangle_inequality(name: str, seed: int) -> None:
    distance = MEASURES[name].function
    x, y, z = arguments_of(MEASURES["cka_deconfounded"], np.random.default_rng(seed))
    assert float(distance(x, z)) <= float(distance(x, y)) + float(distance(y, z)) + 1e-12


@bounded
@given(seed=seeds)
def test_canonical_correlation_is_cka_and_regression_of_whitened_data(seed: int) -> None:
    # Kornblith et al. 2019, section 5: R^2_CCA = ||Q_y' Q_x||^2 / min(p1, p2).
    x, y = arguments_of(PAIR, np.random.default_rng(seed))
    white_x, white_y = (torch.linalg.qr(z - z.mean(0)).Q for z in (x, y))
    (p1, p2), width = (x.shape[1], y.shape[1]), min(x.shape[1], y.shape[1])
    squared = float(canonical_correlation(x, y, summary="mean_squared"))
    assert float(centered_kernel_alignment(white_x, white_y, estimator="biased")) == pytest.approx(
        squared * width / math.sqrt(p1 * p2)
    )
    assert float(linear_regression_r2(white_x, y)) == pytest.approx(squared * width / p1)
    assert squared <= float(canonical_correlation(x, y)) <= math.sqrt(squared)


@bounded
@given(seed=seeds)
def test_svcca_ignores_invertible_maps_that_keep_the_leading_subspace(seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, y = arguments_of(PAIR, draw)
    p = x.shape[1]
    directions = torch.linalg.qr(torch.cat([x, y], dim=1) - torch.cat([x, y], dim=1).mean(0)).Q
    strong, weak = directions[:, :p], 1e-3 * directions[:, p:]
    # Variances between 1/4 and 4 stay far above the share of 0.001 that is cut off.
    stretched = strong @ mapped(torch.eye(p, dtype=torch.float64), ORTHOGONAL, draw) * torch.linspace(0.5, 2, p)
    before, after = (svcca(torch.cat([z, weak], dim=1), y, variance=0.999) for z in (strong, stretched))
    torch.testing.assert_close(after, before, rtol=1e-8, atol=0)


@bounded
@given(seed=seeds)
def test_one_batch_of_everything_is_cka(seed: int) -> None:
    x, y = arguments_of(PAIR, np.random.default_rng(seed))
    torch.testing.assert_close(
        minibatch_centered_kernel_alignment(x, y, batch_size=len(x)), centered_kernel_alignment(x, y)
    )
