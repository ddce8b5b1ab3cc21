from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch

from lightning_sim.functional import normalized_bures_similarity
from tests.functional.representations import (
    assert_bad_input_is_refused,
    assert_constant_sides_are_named,
    assert_half_precision_matches,
    correlated_pair,
)
from tests.golden import Golden, reference_rows

GOLDEN = reference_rows("nbs_linear")


def nbs_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    singular_values = scipy.linalg.svdvals(x.T @ y)
    return float(singular_values.sum() / np.linalg.norm(x) / np.linalg.norm(y))


def reproduce(row: Golden, dtype: torch.dtype) -> torch.Tensor:
    return normalized_bures_similarity(*row.arrays(dtype))


@pytest.mark.parametrize("row", GOLDEN, ids=str)
def test_golden_values(row: Golden) -> None:
    # Including the ill-conditioned cases: the core is decomposed in float64.
    row.assert_reproduced_in_both_dtypes(reproduce)


@pytest.mark.parametrize("widths", [(4, 3), (60, 40), (4, 60), (60, 4)])
def test_definition_on_every_route(widths: tuple[int, int]) -> None:
    x, y = correlated_pair(25, *widths)
    assert float(normalized_bures_similarity(x + 1000, y)) == pytest.approx(
        nbs_by_definition(x.numpy(), y.numpy()), rel=1e-10
    )


def test_procrustes_disparity() -> None:
    x, y = correlated_pair(30, 5, 5)
    _, _, disparity = scipy.spatial.procrustes(x.numpy(), y.numpy())
    assert float(normalized_bures_similarity(x, y)) ** 2 == pytest.approx(1 - disparity, rel=1e-10)


def test_small_values_keep_their_digits() -> None:
    # Orthogonal directions with a sliver of overlap: square roots of eigenvalues of K L see 1e-8 at best.
    basis = np.random.default_rng(0).standard_normal((40, 2))
    u, v = torch.from_numpy(scipy.linalg.orth(basis - basis.mean(0))).T[:, :, None]
    assert float(normalized_bures_similarity(u, v + 1e-10 * u)) == pytest.approx(1e-10, rel=1e-4)


def test_constant_sides_are_named() -> None:
    assert_constant_sides_are_named(normalized_bures_similarity)


def test_bad_input_is_refused() -> None:
    assert_bad_input_is_refused(normalized_bures_similarity)


def test_half_precision() -> None:
    assert_half_precision_matches(normalized_bures_similarity, nbs_by_definition)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_beyond_the_range_of_float32(scale: float) -> None:
    x, y = (z.float() for z in correlated_pair(50, 4, 3))
    expected = normalized_bures_similarity(x, y)
    assert float(normalized_bures_similarity(x * scale, y)) == pytest.approx(float(expected), rel=1e-5)


def test_bias_on_independent_data() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, 20_000, generator=generator) for _ in range(2))
    assert float(normalized_bures_similarity(x, y)) > 0.95


@pytest.mark.parametrize("widths", [(3, 3), (4, 2), (20, 15), (3, 20)])
def test_gradients(widths: tuple[int, int]) -> None:
    x, y = (z.requires_grad_() for z in correlated_pair(9, *widths, shared=2))
    assert torch.autograd.gradcheck(normalized_bures_similarity, (x, y))


@pytest.mark.parametrize("widths", [(5, 4), (20, 15)])
def test_gradients_of_deficient_data_are_finite(widths: tuple[int, int]) -> None:
    x, y = correlated_pair(9, *widths)
    x[1::2] = x[::2][:4]  # samples twice
    x[:, 2:4] = 0.7  # and columns that are constant on both sides: two equal singular values of zero
    y[:, 1:3] = 0.7
    x.requires_grad_()
    normalized_bures_similarity(x, y).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
