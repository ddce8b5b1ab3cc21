from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch

from lightning_sim.functional import angular_procrustes_distance, procrustes_distance
from tests.functional.representations import (
    assert_bad_input_is_refused,
    assert_constant_sides_are_named,
    assert_half_precision_matches,
    correlated_pair,
)
from tests.golden import Golden, reference_rows

GOLDEN = [
    *reference_rows("procrustes"),
    *reference_rows("procrustes_sq"),
    *reference_rows("procrustes_disparity"),
    *reference_rows("shape_angular", alpha=1.0),
]


def reproduce(row: Golden, dtype: torch.dtype) -> torch.Tensor:
    x, y = row.arrays(dtype)
    if row.measure == "shape_angular":
        return angular_procrustes_distance(x, y, center=row.params["center"])
    if row.measure == "procrustes_disparity":
        return 1 - (1 - procrustes_distance(x, y, squared=True) / 2) ** 2
    return procrustes_distance(x, y, squared=row.measure == "procrustes_sq", **row.params)


def residual(x: np.ndarray, y: np.ndarray, *, center: bool = True, normalize: bool = True) -> float:
    """Residual of scipy's rotation of zero-padded data."""
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(z - z.mean(0) if center else z, ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
    if normalize:
        x, y = (z / np.linalg.norm(z) for z in (x, y))
    rotation, _ = scipy.linalg.orthogonal_procrustes(x, y)
    return float(np.linalg.norm(x @ rotation - y))


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row.measure}-{row}")
def test_golden_values(row: Golden) -> None:
    # The distance of the rotated case is 0; single values of it in golden.json are rounding up to 1.5e-8.
    row.assert_reproduced_in_both_dtypes(reproduce, atol=row.atol if row.case == "rotated" else 0)


@pytest.mark.parametrize(("p1", "p2"), [(3, 3), (3, 5), (5, 3), (30, 25), (25, 30), (4, 30), (30, 4)])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_widths_below_and_above_the_number_of_samples(p1: int, p2: int, center: bool, normalize: bool) -> None:
    x, y = correlated_pair(12, p1, p2)
    expected = residual(x.numpy(), y.numpy(), center=center, normalize=normalize)
    assert float(procrustes_distance(x, y, center=center, normalize=normalize)) == pytest.approx(expected, rel=1e-10)
    squared = procrustes_distance(x, y, center=center, normalize=normalize, squared=True)
    assert float(squared) == pytest.approx(expected**2, rel=1e-10)
    if normalize:
        angle = angular_procrustes_distance(x, y, center=center)
        assert float(angle) == pytest.approx(math.acos(1 - expected**2 / 2), rel=1e-10)


def test_the_disparity_of_scipy() -> None:
    x, y = correlated_pair(20, 4, 4)
    _, _, disparity = scipy.spatial.procrustes(x.numpy(), y.numpy())
    assert float(1 - (1 - procrustes_distance(x, y, squared=True) / 2) ** 2) == pytest.approx(disparity, rel=1e-10)


@pytest.mark.parametrize("p", [5, 50])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_float32_tells_equal_from_nearly_equal(p: int, mean: float) -> None:
    # sqrt(2 - 2 NBS) would read up to 3e-4 for both.
    x = torch.randn(30, p, generator=torch.Generator().manual_seed(0)).double() + mean
    rotation = torch.linalg.qr(torch.randn(p, p, generator=torch.Generator().manual_seed(1)).double())[0]
    noise = torch.randn(30, p, generator=torch.Generator().manual_seed(2)).double()
    near = x + 1e-4 * noise * (1 + mean)
    for function in (procrustes_distance, angular_procrustes_distance):
        assert float(function(x.float(), x.float())) < 1e-12
        assert float(function(x.float(), (x @ rotation).float())) < 1e-6 * (1 + mean)
        if mean == 0:
            expected = residual(x.numpy(), near.numpy())
            assert float(function(x.float(), (near @ rotation).float())) == pytest.approx(expected, rel=0.02)


def test_half_precision() -> None:
    assert_half_precision_matches(procrustes_distance, residual)
    assert_half_precision_matches(partial(procrustes_distance, normalize=False), partial(residual, normalize=False))
    assert_half_precision_matches(angular_procrustes_distance, lambda x, y: 2 * math.asin(residual(x, y) / 2))


@pytest.mark.parametrize(
    "measure",
    [
        procrustes_distance,
        partial(procrustes_distance, normalize=False, squared=True),
        angular_procrustes_distance,
    ],
)
def test_constant_sides_are_named(measure) -> None:
    assert_constant_sides_are_named(measure)


def test_constants_without_centring() -> None:
    constant, zero = torch.ones(10, 2), torch.zeros(10, 3)
    for measure in (procrustes_distance, angular_procrustes_distance):
        # A nonzero constant has a direction; both are the same matrix up to scale.
        assert float(measure(constant, 3 * constant, center=False)) == pytest.approx(0, abs=1e-6)
        with pytest.warns(UserWarning, match="`y` has no variance"):
            assert measure(constant, zero, center=False).isnan()


@pytest.mark.parametrize("measure", [procrustes_distance, angular_procrustes_distance])
def test_bad_input_is_refused(measure) -> None:
    assert_bad_input_is_refused(measure)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_beyond_the_range_of_float32(scale: float) -> None:
    x, y = (z.float() for z in correlated_pair(30, 4, 3))
    for measure in (procrustes_distance, angular_procrustes_distance):
        assert float(measure(x * scale, y)) == pytest.approx(float(measure(x, y)), rel=1e-5)


@pytest.mark.parametrize(("p1", "p2"), [(3, 3), (3, 4), (4, 3), (14, 3), (14, 12)])
@pytest.mark.parametrize(
    "measure",
    [
        procrustes_distance,
        partial(procrustes_distance, squared=True),
        partial(procrustes_distance, center=False, normalize=False),
        angular_procrustes_distance,
    ],
)
def test_gradients_of_the_fixed_alignment(measure, p1: int, p2: int) -> None:
    x, y = (z.requires_grad_() for z in correlated_pair(10, p1, p2))
    assert torch.autograd.gradcheck(measure, (x, y))


def test_gradient_where_singular_values_coincide() -> None:
    # The alignment of y to x is the identity, so this is the gradient of a norm.
    x = torch.linalg.qr(correlated_pair(10, 4, 3)[0]).Q.requires_grad_()
    y = 2 * x.detach()
    procrustes_distance(x, y, center=False, normalize=False).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (x.detach() - y) / torch.linalg.matrix_norm(x.detach() - y))


def test_no_decomposition_is_wider_than_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    decompose = torch.linalg.svd

    def spy(matrix: torch.Tensor, **options: bool) -> tuple[torch.Tensor, ...]:
        shapes.append(tuple(matrix.shape))
        return decompose(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", spy)
    procrustes_distance(*correlated_pair(8, 400, 300))
    assert shapes == [(8, 8)]


def test_gradient_at_equal_representations() -> None:
    x, _ = correlated_pair(10, 4, 3)
    for measure in (procrustes_distance, angular_procrustes_distance):
        moving = x.clone().requires_grad_()
        measure(moving, x).backward()
        assert moving.grad is not None
        assert moving.grad.isfinite().all()
