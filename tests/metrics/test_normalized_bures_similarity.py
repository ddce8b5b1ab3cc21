from __future__ import annotations

import pytest
import torch

from lightning_sim.metrics import NormalizedBuresSimilarity
from tests.golden import Golden, reference_rows
from tests.metrics import definitions
from tests.metrics.cases import EXACT, representations

ROWS = reference_rows("nbs_linear")


def fed(metric: NormalizedBuresSimilarity, x: torch.Tensor, y: torch.Tensor, size: int = 7) -> torch.Tensor:
    metric.set_dtype(torch.float64)
    for batch in zip(x.split(size), y.split(size), strict=True):
        metric.update(*batch)
    return metric.compute()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_golden_exact(row: Golden) -> None:
    x, y = row.arrays()
    metric = NormalizedBuresSimilarity("exact", num_features_x=x.shape[1], num_features_y=y.shape[1])
    row.assert_reproduced_by(fed(metric, x, y, size=max(7, len(x) // 5)))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_golden_sketch(row: Golden) -> None:
    x, y = row.arrays()
    metric = NormalizedBuresSimilarity(num_buckets=2048, num_projections=512)
    row.assert_reproduced_by(fed(metric, x, y, size=max(7, len(x) // 5)))


@pytest.mark.parametrize("mean", [1e3, 1e6])
def test_exact_with_means_far_larger_than_the_deviation(mean: float) -> None:
    x, y = representations(500, mean=0)
    expected = definitions.nbs(x.numpy(), y.numpy())
    assert float(fed(NormalizedBuresSimilarity(**EXACT), x + mean, y - mean)) == pytest.approx(expected, abs=1e-6)


def test_more_samples_than_buckets_and_projections_stay_close() -> None:
    x, y = representations(1500, (200, 200), mean=1)
    metric = NormalizedBuresSimilarity(num_buckets=512, num_projections=128)
    # Collisions raise the value as fewer samples would: 512 buckets in place of the 1500 samples.
    few = definitions.nbs(x[:512].numpy(), y[:512].numpy())
    assert float(fed(metric, x, y, 500)) == pytest.approx(few, abs=0.05)
    assert few > definitions.nbs(x.numpy(), y.numpy()) + 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": "minibatch"}, "'sketch', 'exact', got 'minibatch'"),
        ({"accumulate": "exact", "num_features_x": 3}, "`num_features_y` must be an integer, at least 1, got None"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NormalizedBuresSimilarity(**settings)
