"""The map from sums over batches; its values are tested with the function, its ranks with the other metrics."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import lightning_sim
from lightning_sim import metrics
from lightning_sim.functional import stitching_map
from lightning_sim.metrics import StitchingMap
from tests.metrics.cases import SIZES, WIDTHS, batched, representations

PAIR = representations(sum(SIZES))


def fed(batches, **options):
    metric = StitchingMap(*WIDTHS, **options)
    for x, y in batches:
        metric.update(x, y)
    return metric


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ridge": 0.01},
        {"bias": False},
        {"kind": "orthogonal"},
        {"kind": "reduced_rank", "rank": 3},
        {"kind": "lasso", "alpha": 0.1},
    ],
)
def test_batches_and_merged_metrics_give_the_map_of_all_samples(options):
    expected = stitching_map(*PAIR, **options)
    batches = batched(PAIR)
    merged = fed(batches[:2], **options)
    merged.merge_state(fed(batches[2:], **options))
    for metric in (fed(batches, **options), merged, pickle.loads(pickle.dumps(merged))):
        for got, part in zip(metric.compute(), expected, strict=True):
            torch.testing.assert_close(got, part, rtol=1e-8, atol=1e-8)


def test_forward_gives_the_map_of_the_batch_and_keeps_that_of_all():
    metric, batches = StitchingMap(*WIDTHS), batched(PAIR, (300, 200))
    for x, y in batches:
        torch.testing.assert_close(metric(x, y).weight, stitching_map(x, y).weight, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(metric.compute().weight, stitching_map(*PAIR).weight, rtol=1e-8, atol=1e-8)


def test_memory_does_not_depend_on_the_samples():
    metric = fed(batched(PAIR))
    (state,) = metric.metric_state.values()
    assert (state.shape, state.dtype) == ((1 + sum(WIDTHS),) * 2, torch.float64)


def test_float32_samples_far_from_zero():
    x, y = ((side + 1000).float() for side in PAIR)
    metric = fed(zip(x.split(37), y.split(37), strict=True))
    design = np.column_stack([x.double(), np.ones(len(x))])
    expected = np.linalg.lstsq(design, y.double().numpy(), rcond=None)[0][:-1]
    assert np.linalg.norm(metric.compute().weight.numpy() - expected) < 1e-5 * np.linalg.norm(expected)


def test_every_metric_is_at_the_front_door():
    assert set(metrics.__all__) <= set(lightning_sim.__all__)
    assert lightning_sim.StitchingMap is StitchingMap


def test_misuses_are_refused():
    with pytest.raises(ValueError, match="`num_features_y` must be an integer, at least 1, got 0"):
        StitchingMap(3, 0)
    with pytest.raises(ValueError, match="`rank` is of kind='reduced_rank'"):
        StitchingMap(3, 2, kind="reduced_rank")
    with pytest.raises(ValueError, match=r"must have \(3, 2\) columns, as announced, got shapes `x` \(5, 2\)"):
        StitchingMap(3, 2).update(torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="must hold states of the shapes"):
        StitchingMap(3, 2).merge_state(StitchingMap(2, 2))
