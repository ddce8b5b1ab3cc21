"""Layers of which some cannot be compared with others."""

import numpy as np
import pytest
import torch

from lightning_sim.measures import MEASURES, Pairs
from lightning_sim.sketch import Tang2020Sketch, TransportMap
from tests.sketch import exact
from tests.sketch.data import related, sketched
from tests.sketch.test_tang2020 import added


@pytest.mark.parametrize("measure", ["cka", "nbs"])
def test_each_layer_is_compared_with_those_of_its_samples(measure):
    x, y = related(60, 8, rank=4, correlation=0.7, seed=0)
    rows = [sketched(x), sketched(x[:40]), sketched(x[:3])]
    columns = [sketched(y[:40]), sketched(y), sketched(y[:40], ids=torch.arange(1, 41))]
    values, problems = MEASURES[measure].similarities(rows, columns, Pairs({}))
    assert np.isnan(values).tolist() == [[True, False, True], [False, True, True], [True] * 3]
    truth = exact.cka_unbiased if measure == "cka" else exact.nbs
    assert values[0, 1] == pytest.approx(truth(x, y), abs=1e-5)
    assert values[1, 0] == pytest.approx(truth(x[:40], y[:40]), abs=1e-5)
    assert sorted(problems) == [tuple(cell) for cell in np.argwhere(np.isnan(values))]
    assert "60 and 40 of them" in problems[0, 0]
    assert "is of other samples than its counterpart" in problems[1, 2]
    assert problems[2, 0] == "holds 3 samples, and a comparison needs at least 4"
    _, swapped = MEASURES[measure].similarities(columns, rows, Pairs({}))
    assert swapped[0, 2] == "holds 3 samples, and a comparison needs at least 4 (in the reference)"


def test_features_and_gradients_of_different_samples_have_no_transport_map():
    x, y = related(60, 8, rank=4, correlation=0.7, seed=0)
    whole, torn = TransportMap(sketched(x), sketched(y)), TransportMap(sketched(x), sketched(y[:40]))
    values, problems = MEASURES["cka"].similarities([whole, torn], [whole], Pairs({}))
    assert values[0, 0] == pytest.approx(1, abs=1e-4)
    assert np.isnan(values[1, 0])
    assert "of other samples than its counterpart (40 and 60" in problems[1, 0]


def test_published_sketches_are_compared_as_published():
    x, y = related(60, 8, rank=4, correlation=0.7, seed=0)
    a, b = (added(lambda: Tang2020Sketch(64), z) for z in (x, y))
    for measure in ("cka", "nbs"):
        values, problems = MEASURES[measure].similarities([a, b], [b], Pairs({}, estimator="biased"))
        assert values[0, 0] == pytest.approx(float(getattr(a, measure)(b)), abs=1e-6)
        assert problems == {}
