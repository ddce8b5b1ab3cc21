"""What stands beside the values of a measurement, against the functions of two matrices."""

import math

import pytest
import torch
from torch import nn

from lightning_sim import SimilarityEngine, compare_networks
from lightning_sim.functional import carriers, estimate, permutation_null
from lightning_sim.measures import NormalizedBuresSimilarityOfLayers
from lightning_sim.measures.outputs import output_statistics
from lightning_sim.record import Key, read_history

SAMPLES = torch.randn(200, 12, generator=torch.Generator().manual_seed(5))


def networks():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 6)) for _ in range(2)]


def beside(measurement, key):
    return {name: held[key] for name, held in measurement.statistics.items() if key in held}


def of_null(null):
    return {"chance_mean": null.mean, "chance_deviation": null.standard_deviation, "z": null.z}


def test_of_layers():
    first, second = networks()
    measures = ("cka", NormalizedBuresSimilarityOfLayers(standard_errors=True))
    history = compare_networks(first, second, SAMPLES, measures=measures, progress=False)
    with torch.no_grad():
        x, y = first[0](SAMPLES), second[0](SAMPLES)
    key = Key("cka", "features", "0")
    found = beside(history.measurements[0], key)
    carried = carriers(x, y)
    expected = {"standard_error": float(estimate(x, y).standard_error), **of_null(permutation_null(x, y))}
    expected |= {"effective_samples": carried.effective_number, "largest_twentieth": carried.largest_twentieth}
    assert found.pop("p_value") < 0.001
    assert found == pytest.approx(expected, rel=1e-4)
    nbs = beside(history.measurements[0], key._replace(measure="nbs"))
    assert nbs == pytest.approx({"standard_error": float(estimate(x, y, measure="nbs").standard_error)}, rel=1e-4)
    assert history.trajectory("cka", layer="0").standard_errors == pytest.approx([expected["standard_error"]], rel=1e-4)


def test_a_value_near_chance_has_the_p_of_the_skewed_distribution():
    torch.manual_seed(2)
    first, second = nn.Sequential(nn.Linear(12, 20)), nn.Sequential(nn.Linear(12, 20))
    with torch.no_grad():
        first[0].weight[:, 6:] = 0
        second[0].weight[:, :6] = 0
        x, y = first[0](SAMPLES), second[0](SAMPLES)
    history = compare_networks(first, second, SAMPLES, measures="cka", progress=False)
    found = beside(history.measurements[0], Key("cka", "features", "0"))
    null = permutation_null(x, y)
    assert abs(null.z) < 8
    assert (found["z"], found["p_value"]) == pytest.approx((null.z, null.p_value), rel=1e-3)


@pytest.mark.parametrize("measure", ["agreement", "jsd", "rank_correlation"])
def test_of_outputs(measure):
    first, second = networks()
    history = compare_networks(first, second, SAMPLES, progress=False)
    with torch.no_grad():
        x, y = first(SAMPLES), second(SAMPLES)
    null = permutation_null(x, y, measure=measure)
    found = beside(history.measurements[0], Key(measure))
    expected = {"standard_error": float(estimate(x, y, measure=measure).standard_error), "p_value": null.p_value}
    assert found == pytest.approx(expected | of_null(null), rel=1e-4)


def test_a_function_of_one_s_own_may_give_an_error():
    def with_error(x, y):
        return estimate(x, y, measure="nbs")

    def without(x, y):
        return x.std()

    first, second = networks()
    history = compare_networks(first, second, SAMPLES, measures=(with_error, without), progress=False)
    rows = {(row["measure"], row["layer"]): row["standard_error"] for row in history.to_records()}
    with torch.no_grad():
        expected = estimate(first(SAMPLES), second(SAMPLES), measure="nbs").standard_error
    assert rows["with_error", "2"] == pytest.approx(float(expected), rel=1e-4)
    assert rows["without", "2"] is None


def test_a_value_that_few_samples_carry_is_marked_and_warned_about_once(tmp_path):
    samples = SAMPLES.clone()
    samples[17] *= 30
    network, reference = networks()
    with SimilarityEngine(network, reference, samples, measures="cka", directory=tmp_path) as engine:
        with pytest.warns(UserWarning, match=r"cka, features of 0 stands on few samples: a twentieth.* ids 17 \("):
            engine.measure()
        engine.measure(epoch=1)  # warnings are errors
    last = read_history(tmp_path).measurements[-1]
    key = Key("cka", "features", "0")
    assert "ids 17 (" in last.notes[key]
    assert last.statistic("effective_samples", key) < 10
    assert last.statistic("largest_twentieth", key) > 0.5
    assert last == engine.history.measurements[-1]
    untouched = compare_networks(network, reference, SAMPLES, measures="cka", progress=False).measurements[0]
    assert untouched.notes == {}
    assert untouched.statistic("effective_samples", key) > 30


def test_what_has_no_value_has_nothing_beside_it():
    network, reference = networks()
    nn.init.zeros_(network[2].weight)
    with pytest.warns(UserWarning, match="NaN"):
        measured = compare_networks(network, reference, SAMPLES, measures="cka", progress=False).measurements[0]
    key = Key("cka", "features", "2")
    assert math.isnan(measured.by_key[key])
    assert beside(measured, key) == {}


@pytest.mark.parametrize("folds", [{}, {"num_projections": 8, "num_buckets": 256}])
def test_every_cell_of_a_matrix_has_what_chance_would_give(folds):
    first, second = networks()
    settings = {"measures": "cka", "progress": False, **folds}
    (matrix,) = compare_networks(first, second, SAMPLES, **settings).measurements[0].matrices
    with torch.no_grad():
        kept = [{"0": network[:1](SAMPLES), "2": network(SAMPLES)} for network in (first, second)]
    for i, row in enumerate(matrix.rows):
        for j, column in enumerate(matrix.columns):
            exact = permutation_null(kept[0][row], kept[1][column]).standard_deviation
            if folds and {row, column} != {"2"}:  # wider than 8: noise of the folds comes on top
                assert exact < matrix.chance_deviations[i, j] < 5 * exact
            else:
                assert matrix.chance_deviations[i, j] == pytest.approx(exact, rel=1e-3)  # of float16
    (biased,) = compare_networks(first, second, SAMPLES, estimator="biased", **settings).measurements[0].matrices
    assert biased.chance_deviations is None  # whose mean by chance is not 0


def test_errors_of_nbs_beside_its_matrix():
    first, second = networks()
    measures = ("cka", NormalizedBuresSimilarityOfLayers(standard_errors=True))
    history = compare_networks(
        first, second, SAMPLES, measures=measures, matrices=("cka", "nbs"), layers=["0", "2"], progress=False
    )
    for layer in ("0", "2"):
        with torch.no_grad():
            x, y = (network[: int(layer) + 1](SAMPLES) for network in (first, second))
        found = beside(history.measurements[0], Key("nbs", "features", layer))
        expected = estimate(x, y, measure="nbs")
        assert found == pytest.approx({"standard_error": float(expected.standard_error)}, rel=1e-4)
        matrix = history.matrix("nbs")
        place = matrix.rows.index(layer), matrix.columns.index(layer)
        assert matrix.values[place] == pytest.approx(float(expected.value), abs=1e-6)


def test_many_samples_are_not_paired_with_each_other():
    logits = torch.randn(2, 6000, 3, generator=torch.Generator().manual_seed(0))
    for measure in ("agreement", "jsd", "rank_correlation"):
        assert output_statistics(measure, *logits).keys() == {"standard_error"}
