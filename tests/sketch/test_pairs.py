"""Layers of which some cannot be compared with others."""

import pytest
import torch

from lightning_sim.sketch import Tang2020Sketch
from lightning_sim.sketch.pairs import layer_problem, pair_problem, similarity_matrix
from tests.sketch import exact
from tests.sketch.data import related, sketched
from tests.sketch.test_tang2020 import added


@pytest.mark.parametrize("measure", ["cka", "nbs"])
def test_each_layer_is_compared_with_those_of_its_samples(measure):
    x, y = related(60, 8, rank=4, correlation=0.7, seed=0)
    rows = [(sketched(x),), (sketched(x[:40]),), None, (sketched(x[:3]),)]
    columns = [(sketched(y[:40]),), (sketched(y),), (sketched(y[:40], ids=torch.arange(1, 41)),)]
    values = similarity_matrix(rows, columns, measure)
    assert values.isnan().tolist() == [[True, False, True], [False, True, True], *[[True] * 3] * 2]
    truth = exact.cka_unbiased if measure == "cka" else exact.nbs
    assert float(values[0, 1]) == pytest.approx(truth(x, y), abs=1e-5)
    assert float(values[1, 0]) == pytest.approx(truth(x[:40], y[:40]), abs=1e-5)
    assert "60 and 40 of them" in pair_problem(rows[0], columns[0], measure, name="b")
    assert "of other samples than b" in pair_problem(rows[1], columns[2], measure, name="b")
    assert layer_problem(rows[3][0], measure) == "holds 3 samples, and a comparison needs at least 4"
    assert pair_problem(rows[3], columns[0], measure, name="b") is None


def test_features_and_gradients_of_different_samples_have_no_transport_map():
    x, y = related(60, 8, rank=4, correlation=0.7, seed=0)
    whole, torn = (sketched(x), sketched(y)), (sketched(x), sketched(y[:40]))
    values = similarity_matrix([whole, torn], [whole], "cka")
    assert float(values[0, 0]) == pytest.approx(1, abs=1e-4)
    assert bool(values[1, 0].isnan())
    assert "of other samples than b" in pair_problem(torn, whole, "cka", name="b")


def test_published_sketches_are_compared_as_published():
    x, y = related(60, 8, rank=4, correlation=0.7, seed=0)
    a, b = (added(lambda: Tang2020Sketch(64), z) for z in (x, y))
    for measure in ("cka", "nbs"):
        values = similarity_matrix([(a,), (b,)], [(b,)], measure)
        assert float(values[0, 0]) == pytest.approx(float(getattr(a, measure)(b)), abs=1e-6)
        assert layer_problem(a, measure) is None
