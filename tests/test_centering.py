from __future__ import annotations

import pytest
import torch

from lightning_sim._centering import center_columns, undefined, unit_scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_lose_their_means(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 5, generator=generator).to(dtype)
    centered = center_columns(x)
    assert centered.dtype == torch.float64
    expected = x.double() - x.double().mean(0)
    torch.testing.assert_close(centered, expected)


def test_a_large_offset_leaves_no_mean() -> None:
    # The mean of values near 1e12 is known to 1e-4 only; what is left of it must be taken off as well.
    x = 1e12 + torch.randn(1001, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert center_columns(x).mean(0).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.7, -1e-20, 1e20])
def test_constant_columns_become_exact_zeros(dtype: torch.dtype, value: float) -> None:
    eps = torch.finfo(dtype).eps
    x = torch.randn(101, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:, 1] = value
    x[:, 2] = value * (1 + 2 * eps * torch.linspace(-1, 1, 101, dtype=dtype))  # what computing it may leave
    centered = center_columns(x)
    assert centered[:, 0].all()
    assert not centered[:, 1:].any()


def test_a_small_variation_is_not_a_constant() -> None:
    x = 1 + 2.0**-20 * torch.arange(10, dtype=torch.float32)[:, None]
    torch.testing.assert_close(
        center_columns(x)[:, 0], 2.0**-20 * (torch.arange(10, dtype=torch.float64) - 4.5)
    )


def test_unit_scale() -> None:
    assert unit_scale(torch.tensor([[2.0, -8.0]])).tolist() == [[0.25, -1]]
    assert unit_scale(torch.zeros(1, 2)).tolist() == [[0, 0]]


def test_undefined_warns_where_the_public_function_was_called() -> None:
    def measure() -> torch.Tensor:
        return undefined("`x` has no variance", torch.zeros((), dtype=torch.float64))

    with pytest.warns(
        UserWarning, match="^`x` has no variance; the value is undefined, returning NaN$"
    ) as caught:
        value = measure()
    assert value.isnan()
    assert value.dtype == torch.float64
    assert [warning.filename for warning in caught] == [__file__]
