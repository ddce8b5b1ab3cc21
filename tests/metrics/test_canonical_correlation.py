from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_sim.metrics import CanonicalCorrelation
from tests.golden import Golden, reference_rows
from tests.metrics import definitions
from tests.metrics.cases import representations

DIVISORS = {"min_p": "min_width", "min_rank": "min_rank"}


def fed(x: torch.Tensor, y: torch.Tensor, size: int = 7, **settings: Any) -> torch.Tensor:
    metric = CanonicalCorrelation(x.shape[1], y.shape[1], **settings)
    for batch in zip(x.split(size), y.split(size), strict=True):
        metric.update(*batch)
    return metric.compute()


@pytest.mark.parametrize(
    ("row", "summary"),
    [(row, "mean") for row in reference_rows("cca_mean_rho")]
    + [(row, "mean_squared") for row in reference_rows("cca_r2")],
    ids=str,
)
def test_golden(row: Golden, summary: str) -> None:
    x, y = row.arrays()
    divisor = DIVISORS[row.params["divisor"]]
    row.assert_reproduced_by(fed(x, y, max(7, len(x) // 5), summary=summary, divisor=divisor))


@pytest.mark.parametrize("mean", [1e3, 1e6])
def test_means_far_larger_than_the_deviation(mean: float) -> None:
    x, y = representations(500, mean=0)
    expected = definitions.mean_canonical_correlation(x.numpy(), y.numpy())
    assert float(fed(x + mean, y - mean)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mean", [2e6, 1e7])
def test_float32_whose_mean_leaves_no_direction_is_undefined(mean: float) -> None:
    # The rounding of the entries, relative to the mean, is as large as what varies.
    x, y = ((side / side.std(0) + mean).float() for side in representations(500, mean=0))
    with pytest.warns(UserWarning, match="`x` and `y` has no variance over the samples above rounding.*NaN"):
        assert fed(x, y).isnan()
    with pytest.warns(UserWarning, match="`y` has no variance over the samples above rounding.*NaN"):
        assert fed(x - mean, y).isnan()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_directions_made_of_rounding_are_absent(dtype: torch.dtype) -> None:
    x, y = representations(200, (6, 5), mean=0)
    correlations = definitions.canonical_correlations(x.numpy(), y.numpy())
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(width, 20, generator=generator, dtype=torch.float64) for width in (6, 5)]
    deficient = [(side @ linear + 3).to(dtype) for side, linear in zip((x, y), maps, strict=True)]
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert float(fed(*deficient, divisor="min_rank")) == pytest.approx(correlations.mean(), abs=tolerance)
    assert float(fed(*deficient)) == pytest.approx(correlations.sum() / 20, abs=tolerance)


def test_fewer_samples_than_features() -> None:
    x, y = representations(15, (40, 30))
    assert float(fed(x, y, divisor="min_rank")) == pytest.approx(1, abs=1e-9)  # both ranks are n - 1
    assert float(fed(x, y)) == pytest.approx(14 / 30, abs=1e-9)


@pytest.mark.parametrize("share", [1e-4, 1e-9])
def test_weak_directions_count_down_to_the_documented_share(share: float) -> None:
    # Columns are x, and x plus a weak other signal that y holds as well.
    generator = torch.Generator().manual_seed(0)
    strong, weak, noise = torch.randn(3, 400, generator=generator, dtype=torch.float64)
    x = torch.stack([strong, strong + share**0.5 * weak], 1)
    y = torch.stack([weak + noise, noise], 1)
    expected = definitions.mean_canonical_correlation(x.numpy(), y.numpy())
    assert float(fed(x, y)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"summary": "max"}, "'mean', 'mean_squared', got 'max'"),
        ({"divisor": "p"}, "'min_width', 'min_rank', got 'p'"),
        ({"num_features_x": 0}, "`num_features_x` must be an integer, at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CanonicalCorrelation(**{"num_features_x": 3, "num_features_y": 3, **settings})


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`x` must have `num_features_x` = 3 columns, got \(20, 12\)"):
        CanonicalCorrelation(3, 8).update(*representations(20))
