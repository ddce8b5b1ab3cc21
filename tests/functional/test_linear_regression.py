from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_sim.functional import linear_regression_r2
from tests.functional.representations import (
    assert_bad_input_is_refused,
    assert_constant_sides_are_named,
    assert_half_precision_matches,
    correlated_pair,
)
from tests.golden import Golden, reference_rows

GOLDEN = reference_rows("linreg_r2")


def reproduce(row: Golden, dtype: torch.dtype) -> torch.Tensor:
    x, y = row.arrays(dtype)
    return linear_regression_r2(x, y) if row.params["predict"] == "X" else linear_regression_r2(y, x)


def least_squares(x: np.ndarray, y: np.ndarray) -> float:
    """1 - residual / total of x fitted from y with an intercept."""
    design = np.column_stack([y - y.mean(0), np.ones(len(y))])
    residual = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    return float(1 - (residual**2).sum() / ((x - x.mean(0)) ** 2).sum())


@pytest.mark.parametrize("row", GOLDEN, ids=str)
def test_golden_values(row: Golden) -> None:
    # Including the ill-conditioned cases: the rank tolerance follows the dtype.
    row.assert_reproduced_in_both_dtypes(reproduce)


def test_least_squares_with_an_intercept() -> None:
    x, y = correlated_pair(30, 5, 3)
    assert float(linear_regression_r2(x, y)) == pytest.approx(least_squares(x.numpy(), y.numpy()), rel=1e-12)
    assert float(linear_regression_r2(y, x)) == pytest.approx(least_squares(y.numpy(), x.numpy()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_deficient_and_wide_predictors(dtype: torch.dtype) -> None:
    x, y = correlated_pair(60, 5, 4)
    redundant = y @ torch.randn(4, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 30
    expected = least_squares(x.numpy(), y.numpy())
    # Float32 data with mean 30 hold their 4 factors to about 30 * 6e-8.
    assert float(linear_regression_r2(x.to(dtype), redundant.to(dtype))) == pytest.approx(expected, rel=1e-4)
    wide = torch.randn(60, 59, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert float(linear_regression_r2(x.to(dtype), wide)) == pytest.approx(1)


def test_half_precision() -> None:
    assert_half_precision_matches(linear_regression_r2, least_squares)


def test_constant_sides_are_named() -> None:
    assert_constant_sides_are_named(linear_regression_r2)


def test_bad_input_is_refused() -> None:
    assert_bad_input_is_refused(linear_regression_r2)


def test_bias_on_independent_data() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [
        linear_regression_r2(torch.randn(50, 5, generator=generator), torch.randn(50, 8, generator=generator))
        for _ in range(200)
    ]
    # The standard error of the mean over 200 pairs is 0.002.
    assert float(torch.stack(values).mean()) == pytest.approx(8 / 49, abs=0.01)


def test_gradients() -> None:
    x, y = (z.requires_grad_() for z in correlated_pair(12, 4, 3))
    assert torch.autograd.gradcheck(linear_regression_r2, (x, y))


def test_gradients_where_singular_values_coincide() -> None:
    # The projection on y is smooth there, although its single singular vectors are not.
    generator = torch.Generator().manual_seed(0)
    y = torch.linalg.qr(torch.cat([torch.ones(12, 1), torch.randn(12, 3, generator=generator)], 1).double())[
        0
    ][:, 1:]
    x = torch.randn(12, 4, generator=generator).double()
    assert torch.autograd.gradcheck(linear_regression_r2, (x.requires_grad_(), y.requires_grad_()))
