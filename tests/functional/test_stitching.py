from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from sklearn.metrics import r2_score
from torch import Tensor

from lightning_sim.functional import LinearMap, stitching_map
from lightning_sim.functional.stitching import MapOptions, map_of_gram, stitching_gram
from tests.functional.representations import assert_bad_input_is_refused, correlated_pair
from tests.golden import ILL_CONDITIONED, Golden, reference_rows

RESIDUALS, NORMS = reference_rows("stitch_residual"), reference_rows("stitch_map_norm")
MAPS, PAIRS = (np.load(Path(__file__).parents[1] / "golden" / f"{name}.npz") for name in ("stitch_maps", "pairs"))


def asked(row: Golden) -> dict[str, Any]:
    """The options of a golden row."""
    options = {"kind": row.params["map"], "bias": row.params.get("bias", row.params.get("center"))}
    return options | ({"rank": row.params["rank"]} if "rank" in row.params else {})


def streamed(x: Tensor, y: Tensor, **options: Any) -> LinearMap:
    """From sums over two uneven halves."""
    cut = len(x) // 3
    gram = stitching_gram(x[:cut], y[:cut]) + stitching_gram(x[cut:], y[cut:])
    return map_of_gram(gram, x.shape[1], MapOptions(**options))


def residual(x: Tensor, y: Tensor, found: LinearMap) -> Tensor:
    return torch.linalg.matrix_norm(x @ found.weight + found.bias - y)


@pytest.mark.parametrize("row", RESIDUALS, ids=str)
def test_golden_residuals(row: Golden) -> None:
    x, y = row.arrays()
    found = stitching_map(x, y, **asked(row))
    if row.params.get("zero_pad"):
        # Of the rotation of which the map is a part: what a projection drops of x counts as well.
        cross = (found.weight * (x.T @ y)).sum()
        row.assert_reproduced_by((x.square().sum() + y.square().sum() - 2 * cross).clamp_min(0).sqrt(), atol=1e-5)
    else:
        row.assert_reproduced_by(residual(x, y, found))


@pytest.mark.parametrize("row", NORMS, ids=str)
def test_golden_norms_of_the_smallest_map(row: Golden) -> None:
    x, y = row.arrays()
    row.assert_reproduced_by(torch.linalg.matrix_norm(stitching_map(x, y, bias=False).weight))


@pytest.mark.parametrize("solve", [stitching_map, streamed])
@pytest.mark.parametrize("name", MAPS.files)
def test_golden_maps(solve: Any, name: str) -> None:
    case, kind = name.split("/")
    x, y = (torch.from_numpy(PAIRS[f"{case}/{side}"]) for side in "XY")
    options = {"kind": "orthogonal" if kind == "orthogonal" else "least_squares", "bias": kind.startswith("affine")}
    found = solve(x, y, **options)
    got = found.bias if kind == "affine_b" else found.weight
    np.testing.assert_allclose(got, MAPS[name], rtol=1e-5, atol=1e-6 * np.abs(MAPS[name]).max())


@pytest.mark.parametrize("row", [row for row in RESIDUALS if row.case not in ILL_CONDITIONED], ids=str)
def test_golden_residuals_from_sums(row: Golden) -> None:
    x, y = row.arrays()
    options = asked(row)
    expected = residual(x, y, stitching_map(x, y, **options))
    found = streamed(x, y, **options)
    assert float(residual(x, y, found)) == pytest.approx(float(expected), rel=1e-5, abs=1e-5 * float(y.norm()))


def test_two_merged_halves_are_the_least_squares_of_all_samples() -> None:
    # Strongly correlated channels of different sizes far from zero, in float32 as networks give them.
    x, y = correlated_pair(5000, 32, 24, shared=8)
    x, y = ((z * torch.logspace(-1, 1, z.shape[1], dtype=z.dtype) + 20).float() for z in (x, y))
    design = np.column_stack([x.double().numpy(), np.ones(len(x))])
    expected = np.linalg.lstsq(design, y.double().numpy(), rcond=None)[0]
    for found in (streamed(x, y), streamed(x.double(), y.double()), stitching_map(x.double(), y.double())):
        got = np.vstack([found.weight, found.bias])
        assert np.linalg.norm(got[:-1] - expected[:-1]) < 1e-5 * np.linalg.norm(expected[:-1])
        assert np.linalg.norm(design @ (got - expected)) < 1e-5 * np.linalg.norm(y)


@pytest.mark.parametrize("solve", [stitching_map, streamed])
@pytest.mark.parametrize("bias", [True, False])
def test_the_maps_of_scikit_learn(solve: Any, bias: bool) -> None:
    x, y = correlated_pair(200, 7, 5)
    ridge = 0.3
    strength = ridge * float(((x - x.mean(0)) if bias else x).square().sum()) / x.shape[1]
    cases = (
        ({}, LinearRegression(fit_intercept=bias)),
        ({"ridge": ridge}, Ridge(strength, fit_intercept=bias)),
        ({"kind": "lasso", "alpha": 0.2}, Lasso(0.2, fit_intercept=bias, tol=1e-12, max_iter=100_000)),
    )
    for options, model in cases:
        found = solve(x, y, bias=bias, **options)
        model.fit(x.numpy(), y.numpy())
        np.testing.assert_allclose(found.weight.T, model.coef_, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found.bias, model.intercept_ + np.zeros(5), rtol=1e-6, atol=1e-9)
        expected = r2_score(y, model.predict(x.numpy()), multioutput="variance_weighted")
        assert float(found.r2) == pytest.approx(expected, rel=1e-8)
        if options.get("kind") == "lasso":
            assert (found.weight == 0).numpy().sum() == (model.coef_ == 0).sum() > 3


@pytest.mark.parametrize(("p1", "p2"), [(6, 6), (4, 9), (9, 4)])
def test_the_orthogonal_map_is_an_isometry_and_the_best_among_them(p1: int, p2: int) -> None:
    x, y = correlated_pair(80, p1, p2)
    found = stitching_map(x, y, kind="orthogonal")
    gram = found.weight @ found.weight.T if p1 <= p2 else found.weight.T @ found.weight
    torch.testing.assert_close(gram, torch.eye(min(p1, p2), dtype=torch.float64))
    torch.testing.assert_close(found.bias, y.mean(0) - x.mean(0) @ found.weight)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = found.weight @ torch.linalg.qr(torch.randn(p2, p2, dtype=torch.float64, generator=generator)).Q
        cross = (x - x.mean(0)).T @ (y - y.mean(0))
        assert (other * cross).sum() < (found.weight * cross).sum()


def test_the_reduced_rank_is_a_projection_of_the_fit_and_no_truncation_of_the_map() -> None:
    x, y = correlated_pair(60, 8, 6)
    a, b = x - x.mean(0), y - y.mean(0)
    full = np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0]
    _, _, vh = np.linalg.svd(a.numpy() @ full)
    for rank in (1, 3, 6, 9):
        found = stitching_map(x, y, kind="reduced_rank", rank=rank)
        np.testing.assert_allclose(found.weight, full @ vh[:rank].T @ vh[:rank], atol=1e-10)
        assert np.linalg.matrix_rank(found.weight.numpy()) == min(rank, 6)
    u, s, vh = np.linalg.svd(full)
    truncated = a.numpy() @ (u[:, :2] * s[:2]) @ vh[:2]
    assert residual(x, y, stitching_map(x, y, kind="reduced_rank", rank=2)) < np.linalg.norm(truncated - b.numpy())


@pytest.mark.parametrize("solve", [stitching_map, streamed])
def test_fewer_samples_than_channels(solve: Any) -> None:
    x, y = correlated_pair(20, 50, 4)
    found = solve(x, y)
    a, b = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    np.testing.assert_allclose(found.weight, np.linalg.pinv(a) @ b, rtol=1e-5, atol=1e-7)
    assert float(found.r2) == pytest.approx(1)


@pytest.mark.parametrize("solve", [stitching_map, streamed])
def test_constant_sides(solve: Any) -> None:
    x, y = correlated_pair(30, 4, 3)
    constant = torch.full_like(x, 0.7)
    found = solve(constant, y)
    assert not found.weight.any()
    torch.testing.assert_close(found.bias, y.mean(0))
    assert float(found.r2) == pytest.approx(0, abs=1e-12)
    with pytest.warns(UserWarning, match="`y` has no variance"):
        found = solve(x, constant)
    assert found.r2.isnan()
    torch.testing.assert_close(x @ found.weight + found.bias, constant)


def test_precision_follows_the_inputs() -> None:
    x, y = correlated_pair(50, 4, 3)
    exact = stitching_map(x.bfloat16().double(), y.bfloat16().double())
    found = stitching_map(x.bfloat16(), y.bfloat16())
    assert {part.dtype for part in found} == {torch.float32}
    torch.testing.assert_close(found.weight.double(), exact.weight, rtol=1e-5, atol=1e-6)


def test_bad_input_is_refused() -> None:
    assert_bad_input_is_refused(stitching_map)
    x, y = correlated_pair(20, 4, 3)
    refused = functools.partial(stitching_map, x, y)
    for options, message in (
        ({"kind": "nearest"}, "`kind` must be one of 'least_squares', .*got 'nearest'"),
        ({"kind": "reduced_rank"}, "`rank` is of kind='reduced_rank', which needs it, got rank=None"),
        ({"rank": 2}, "`rank` is of kind='reduced_rank'.*with kind='least_squares'"),
        ({"kind": "lasso"}, "`alpha` is of kind='lasso', which needs it"),
        ({"kind": "lasso", "alpha": -1.0}, "`alpha` must be at least 0, got -1.0"),
        ({"kind": "reduced_rank", "rank": 0}, "`rank` must be an integer, at least 1, got 0"),
        ({"kind": "orthogonal", "ridge": 0.1}, "`ridge` is of least squares and reduced rank"),
        ({"bias": 1}, "`bias` must be True or False"),
    ):
        with pytest.raises(ValueError, match=message):
            refused(**options)
