from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from lightning_sim.metrics import CenteredKernelAlignment, NormalizedBuresSimilarity
from lightning_sim.metrics._sketched_pair import SketchedPair
from lightning_sim.sketch import Sketch
from tests.golden import Golden, reference_rows
from tests.metrics import definitions
from tests.metrics.cases import EXACT, WIDTHS, batched, representations
from tests.sketch.data import related

ROWS = reference_rows("cka_linear", center=True)


def fed(metric: CenteredKernelAlignment, x: torch.Tensor, y: torch.Tensor, size: int = 7) -> torch.Tensor:
    metric.set_dtype(torch.float64)
    for batch in zip(x.split(size), y.split(size), strict=True):
        metric.update(*batch)
    return metric.compute()


def estimator_of(row: Golden) -> str:
    return "unbiased" if row.params["unbiased"] else "biased"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_golden_exact(row: Golden) -> None:
    x, y = row.arrays()[-2:]  # some rows hold the network's input as well
    metric = CenteredKernelAlignment(
        "exact", estimator=estimator_of(row), num_features_x=x.shape[1], num_features_y=y.shape[1]
    )
    row.assert_reproduced_by(fed(metric, x, y, size=max(7, len(x) // 5)))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_golden_sketch(row: Golden) -> None:
    x, y = row.arrays()[-2:]
    metric = CenteredKernelAlignment(estimator=estimator_of(row), num_buckets=2048, num_projections=512)
    row.assert_reproduced_by(fed(metric, x, y, size=max(7, len(x) // 5)))


@pytest.mark.parametrize("row", reference_rows("cka_minibatch"), ids=str)
def test_golden_minibatch(row: Golden) -> None:
    row.assert_reproduced_by(fed(CenteredKernelAlignment("minibatch"), *row.arrays(), row.params["batch_size"]))


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("size", [1, 10, 100])
@pytest.mark.parametrize("mean", [1e3, 1e6])
def test_exact_with_means_far_larger_than_the_deviation(mean: float, size: int, estimator: str) -> None:
    x, y = representations(100, mean=0)
    expected = getattr(definitions, f"cka_{estimator}")(x.numpy(), y.numpy())
    value = fed(CenteredKernelAlignment(estimator=estimator, **EXACT), x + mean, y - mean, size)
    assert float(value) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-10, 1e-4, 1e4, 1e10])
@pytest.mark.parametrize("settings", [{}, EXACT, {"accumulate": "minibatch"}], ids=["sketch", "exact", "minibatch"])
def test_scale_does_not_matter(settings: dict[str, Any], scale: float) -> None:
    x, y = representations(60)
    expected = definitions.cka_unbiased(x.numpy(), y.numpy())
    assert float(fed(CenteredKernelAlignment(**settings), scale * x, y, 60)) == pytest.approx(expected, abs=1e-6)


def test_equals_two_sketches_with_the_same_ids() -> None:
    x, y = representations(3000, (40, 70))
    settings = {"num_buckets": 256, "num_projections": 32, "seed": 5}
    metric = CenteredKernelAlignment(**settings).set_dtype(torch.float64)
    sketches = [Sketch(**settings, dtype=torch.float64) for _ in range(2)]
    for first in range(0, 3000, 500):
        batch = [side[first : first + 500] for side in (x, y)]
        metric.update(*batch)
        for sketch, side in zip(sketches, batch, strict=True):
            sketch.update(side, torch.arange(first, first + 500))
    assert float(metric.compute()) == pytest.approx(float(sketches[0].cka(sketches[1])), abs=1e-12)


def test_ids_make_the_value_independent_of_the_division_beyond_the_buckets() -> None:
    x, y = representations(2000, (30, 20))
    ids = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:2000]
    values = []
    for sizes in ((2000,), (100,) * 20, (1500, 500)):
        parts = []
        for batch in zip(x.split(sizes), y.split(sizes), ids.split(sizes), strict=True):
            parts.append(CenteredKernelAlignment(num_buckets=128, num_projections=16).set_dtype(torch.float64))
            parts[-1].update(*batch)
        for part in parts[1:]:
            parts[0].merge_state(part)
        values.append(float(parts[0].compute()))
    assert np.ptp(values) < 1e-12  # without ids the values differ in the second digit here


@pytest.mark.parametrize("num_parts", [1, 20])
def test_more_samples_than_buckets_are_unbiased_in_one_metric_or_merged(num_parts: int) -> None:
    assert abs(_mean_error(num_parts)) < 0.02  # four standard errors


def test_parts_that_were_counted_alike_would_be_biased() -> None:
    # Where parts come in one order, as of classes, samples of one place would add up instead of cancelling.
    with mock.patch.object(SketchedPair, "aligned", lambda self, state, announced, part: state):
        assert abs(_mean_error(20, in_order=True)) > 0.05


@pytest.mark.parametrize("num_parts", [4, 20])
def test_parts_in_one_order_merged_one_after_the_other_are_unbiased(num_parts: int) -> None:
    assert abs(_mean_error(num_parts, in_order=True)) < 0.03


def _mean_error(num_parts: int, *, in_order: bool = False) -> float:
    x, y = related(2000, 64, rank=20, correlation=0.5, seed=1)
    if in_order:
        places = related(2000 // num_parts, 64, rank=20, correlation=0.95, seed=2)
        x, y = (side + place.repeat(num_parts, 1) for side, place in zip((x, y), places, strict=True))
    truth = definitions.cka_unbiased(x.numpy(), y.numpy())
    values = []
    for seed in range(16):
        parts = []
        for batch in zip(x.chunk(num_parts), y.chunk(num_parts), strict=True):
            parts.append(CenteredKernelAlignment(num_buckets=128, num_projections=64, seed=seed))
            parts[-1].update(*batch)
        for part in parts[1:]:
            parts[0].merge_state(part)
        values.append(float(parts[0].compute()))
    return float(np.mean(values)) - truth


def test_forward_beyond_the_buckets_stays_unbiased() -> None:
    x, y = related(1000, 64, rank=20, correlation=0.5, seed=1)
    truth = definitions.cka_unbiased(x.numpy(), y.numpy())
    errors = []
    for seed in range(16):
        metric = CenteredKernelAlignment(num_buckets=64, num_projections=64, seed=seed)
        for batch in zip(x.split(100), y.split(100), strict=True):
            metric(*batch)
        errors.append(float(metric.compute()) - truth)
    assert abs(np.mean(errors)) < 0.03  # four standard errors


@pytest.mark.parametrize("widths", [(3000, 3000), (3000, 10)])
def test_folded_features_stay_close_and_divide_freely(widths: tuple[int, int]) -> None:
    x, y = representations(400, widths)
    settings = {"num_buckets": 512, "num_projections": 512}
    whole = fed(CenteredKernelAlignment(**settings), x, y, 400)
    divided = fed(CenteredKernelAlignment(**settings), x, y, 30)
    assert float(whole) == pytest.approx(float(divided), abs=1e-12)
    assert float(whole) == pytest.approx(definitions.cka_unbiased(x.numpy(), y.numpy()), abs=0.03)


def test_state_does_not_depend_on_samples_or_widths() -> None:
    sizes = []
    for samples, width in ((1, 1), (100, 3000)):
        metric = CenteredKernelAlignment()
        metric.update(*(torch.ones(samples, width) for _ in range(2)))
        sizes.append(sum(state.numel() * state.element_size() for state in metric.metric_state.values()))
    assert sizes[0] == sizes[1] <= 8.5e6


def test_minibatch_ignores_batches_too_small_for_the_estimator() -> None:
    x, y = representations(103)
    metric = CenteredKernelAlignment("minibatch")
    assert torch.equal(fed(metric.clone(), x, y, 20), fed(metric.clone(), x[:100], y[:100], 20))
    with pytest.warns(UserWarning, match="no batch had the 4 samples"):
        assert fed(metric, x, y, 3).isnan()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": "unbiased"}, "'sketch', 'exact', 'minibatch', got 'unbiased'"),
        ({"accumulate": "minibatch", "estimator": "biased"}, '`estimator` must be "unbiased" with'),
        ({"accumulate": "exact"}, "`num_features_x` must be an integer, at least 1, got None"),
        ({"accumulate": "exact", "num_features_x": 3, "num_features_y": 0}, "`num_features_y`.*got 0"),
        ({"num_buckets": 1000}, "power of two.*1000"),
        ({"num_projections": 7}, "even number.*7"),
        ({"colour": "red"}, "Unexpected keyword arguments: `colour`"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CenteredKernelAlignment(**settings)


@pytest.mark.parametrize("make", [CenteredKernelAlignment, partial(CenteredKernelAlignment, **EXACT)])
def test_a_width_that_changes_is_refused(make: Any) -> None:
    x, y = representations(20)
    metric = make()
    metric.update(x, y)
    with pytest.raises(ValueError, match=r"`y` must .*8.*got.*\(20, 7\)"):
        metric.update(x, y[:, :7])


def test_widths_that_differ_between_merged_metrics_are_refused() -> None:
    x, y = representations(20)
    metric, other = CenteredKernelAlignment(), CenteredKernelAlignment()
    metric.update(x, y)
    other.update(x[:, :10], y)
    metric.merge_state(other)
    with pytest.raises(ValueError, match="`x` must have one width"):
        metric.compute()


@pytest.mark.parametrize("other", [{"seed": 1}, {"num_buckets": 512}, EXACT, {"accumulate": "minibatch"}])
def test_merging_other_settings_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"different settings.*SketchedPair\(num_buckets=1024"):
        CenteredKernelAlignment().merge_state(CenteredKernelAlignment(**other))


def test_merging_another_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be a CenteredKernelAlignment.*got NormalizedBures"):
        CenteredKernelAlignment().merge_state(NormalizedBuresSimilarity())


@pytest.mark.parametrize("ids", [torch.arange(19), torch.rand(20), torch.ones(20, dtype=torch.bool)], ids=str)
def test_bad_ids_are_refused(ids: Any) -> None:
    with pytest.raises(ValueError, match=r"`sample_ids` must be 20 integers.*\(20, 12\)"):
        CenteredKernelAlignment().update(*representations(20), ids)


def test_ids_for_some_batches_only_are_refused() -> None:
    metric = CenteredKernelAlignment()
    for batch, ids in zip(batched(representations(30), (10, 20)), (None, torch.arange(20)), strict=True):
        metric.update(*batch, ids)
    with pytest.raises(ValueError, match="every batch or for none: 20 samples came with ids and 10 without"):
        metric.compute()


def test_exact_with_one_varying_sample_is_undefined() -> None:
    # All pairs without that sample are equally similar: the unbiased norm of the kernel is zero.
    x, y = torch.zeros(20, WIDTHS[0]), torch.randn(20, WIDTHS[1], generator=torch.Generator().manual_seed(0))
    x[3] = 1
    with pytest.warns(UserWarning, match="no variance above rounding: all are alike, or all but one"):
        assert fed(CenteredKernelAlignment(**EXACT), x, y).isnan()


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [
        (CenteredKernelAlignment, {"estimator": "sketch"}, {}),
        (CenteredKernelAlignment, EXACT | {"accumulate": "sketch", "estimator": "exact"}, EXACT),
        (CenteredKernelAlignment, {"estimator": "minibatch"}, {"accumulate": "minibatch"}),
        (CenteredKernelAlignment, {"biased": True}, {"estimator": "biased"}),
        (CenteredKernelAlignment, EXACT | {"biased": False}, EXACT),
        (NormalizedBuresSimilarity, {"estimator": "sketch"}, {}),
        (NormalizedBuresSimilarity, EXACT | {"estimator": "exact"}, EXACT),
    ],
)
def test_the_names_that_settings_had_before_still_work(make: Any, old: dict[str, Any], new: dict[str, Any]) -> None:
    with pytest.warns(DeprecationWarning, match="^`(estimator|biased)=.*` is now `(accum|estim)") as caught:
        renamed = make(**old)
    assert [warning.filename for warning in caught] == [__file__]
    assert renamed._sums == make(**new)._sums
    x, y = representations(20)
    assert torch.equal(fed(renamed, x, y), fed(make(**new), x, y))
    for wrong in ({"biased": "no"}, {"estimator": "best"}, {"accumulate": "exact", "estimator": "minibatch"}):
        with pytest.raises(ValueError, match=r"^`(biased|estimator|accumulate)` must be|^Unexpected"):
            make(**wrong)
