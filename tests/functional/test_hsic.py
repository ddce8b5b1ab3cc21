from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sim.functional import hsic
from tests.functional.representations import HALF_CASES, assert_bad_input_is_refused, correlated_pair
from tests.golden import Golden, reference_rows

GOLDEN = reference_rows("hsic_biased") + reference_rows("hsic_unbiased")
# Narrow layers go by cross-covariances, wide ones by kernels, and a narrow with a wide one by the cheaper.
WIDTHS = [(4, 3), (50, 40), (4, 60), (60, 2)]


def hsic_by_definition(x: np.ndarray, y: np.ndarray, estimator: str) -> float:
    """tr(KHLH) / (n - 1)^2, or HSIC_1 term by term (Song et al. 2012, eq. 5)."""
    n = len(x)
    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    if estimator == "biased":
        h = np.eye(n) - 1 / n
        return float(np.trace(k @ h @ m @ h) / (n - 1) ** 2)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    sums = (one @ k @ one) * (one @ m @ one)
    terms = np.trace(k @ m) + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ m @ one
    return float(terms / (n * (n - 3)))


def reproduce(row: Golden, dtype: torch.dtype) -> Tensor:
    return hsic(*row.arrays(dtype), estimator=row.measure.removeprefix("hsic_"))


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row.measure}-{row}")
def test_golden_values(row: Golden) -> None:
    # Including the ill-conditioned cases: sums are taken in float64.
    row.assert_reproduced_in_both_dtypes(reproduce)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("offset", [0, 1000])
def test_definition_on_every_route(widths: tuple[int, int], estimator: str, offset: float) -> None:
    x, y = correlated_pair(25, *widths)
    expected = hsic_by_definition(x.numpy(), y.numpy(), estimator)
    assert float(hsic(x + offset, y - offset, estimator=estimator)) == pytest.approx(expected, rel=1e-9)
    assert float(hsic(y, x, estimator=estimator)) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("widths", [(2, 3), (40, 30)])
def test_unbiased_estimator_has_the_population_value_as_its_mean(widths: tuple[int, int]) -> None:
    # The population value for linear kernels is the squared norm of the cross-covariance.
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, p, generator=generator) / p**0.5 for p in widths]
    population = float((maps[0].T @ maps[1]).square().sum())
    draws: dict[str, list[Tensor]] = {"unbiased": [], "biased": []}
    for _ in range(1000):
        latent = torch.randn(10, 2, generator=generator)
        x, y = (
            latent @ m + torch.randn(10, p, generator=generator) for m, p in zip(maps, widths, strict=True)
        )
        for estimator, values in draws.items():
            values.append(hsic(x, y, estimator=estimator))
    unbiased, biased = (torch.stack(values) for values in draws.values())
    assert abs(float(unbiased.mean()) - population) < 4 * float(unbiased.std()) / 1000**0.5
    assert float(biased.mean()) > population + 10 * float(biased.std()) / 1000**0.5


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("width", [3, 40])
def test_a_constant_depends_on_nothing(estimator: str, width: int) -> None:
    _, y = correlated_pair(20, 3, width)
    assert float(hsic(torch.full((20, width), 0.7, dtype=torch.float64), y, estimator=estimator)) == 0


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_half_precision(estimator: str) -> None:
    for dtype, mean, scale in HALF_CASES:
        x, y = ((mean + scale * z / z.std()).to(dtype) for z in correlated_pair(60, 6, 4, seed=3))
        value = hsic(x, y, estimator=estimator)
        assert value.dtype == torch.float32
        expected = hsic_by_definition(x.double().numpy(), y.double().numpy(), estimator)
        assert float(value) == pytest.approx(expected, rel=5e-3, abs=0), (dtype, mean, scale)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("widths", [(3, 2), (14, 9)])
def test_gradients(estimator: str, widths: tuple[int, int]) -> None:
    x, y = (z.requires_grad_() for z in correlated_pair(8, *widths))
    assert torch.autograd.gradcheck(lambda x, y: hsic(x, y, estimator=estimator), (x, y))


def test_bad_input_is_refused() -> None:
    assert_bad_input_is_refused(hsic)
    x, y = correlated_pair(3, 4, 2)
    with pytest.raises(ValueError, match=r"`x` and `y` need at least 4 rows.*\(3, 4\) and \(3, 2\)"):
        hsic(x, y)
    assert hsic(x, y, estimator="biased").isfinite()
    with pytest.raises(ValueError, match="`estimator` must be one of 'unbiased', 'biased', got 'debiased'"):
        hsic(x, y, estimator="debiased")
