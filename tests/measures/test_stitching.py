"""Stitching as it is monitored, against stitched networks put together by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim import SimilarityEngine, SimilarityMonitor, compare_networks, read_history
from lightning_sim.functional import stitching_map
from lightning_sim.measures import Key, Pairs, Side, Stitching
from lightning_sim.probe import Probe
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.probe.untrained import untrained_weights
from lightning_sim.sketch import Sketch
from lightning_sim.stitching import Stitched, score_stitched
from lightning_sim.views import report_page

from ..callbacks.training import CONVOLUTIONS, digits, features, fit, new_network, random_states
from ..stitching.networks import Convolutional, Dense, Tokens, labelled
from ..views.test_report import Page

SAMPLES = 64
QUICK = {"layers": ["norm"], "measures": "stitching"}
LAYERS = {"norm": "norm", "second": "second"}


def measured(network, other, layers=LAYERS, data=None, size=SAMPLES, **options):
    """The values by name of one measurement, and the measure."""
    runner = ProbeRunner(Probe(DataLoader(data or labelled(), batch_size=24), size), Sketch)
    pairs, measure = Pairs(layers), Stitching(**options)
    sides = [
        Side(runner.try_first_batch(side, list(names)), runner, side)
        for side, names in ((network, layers), (other, layers.values()))
    ]
    reason = measure.refuse(*sides, pairs)
    if reason is not None:
        raise ValueError(reason)
    sides[1].kept(measure)
    found = measure.compare(*sides, pairs)
    assert set(found.numbers) == set(measure.keys(pairs))
    return found, measure, sides, pairs


def by_hand(front, layer, back, back_layer):
    """Fitted on even samples by least squares of the rows, scored on odd ones."""
    front, back = front.eval(), back.eval()
    sides = (front, layer), (back, back_layer)
    x, y = labelled().tensors
    with torch.no_grad():
        halves = []
        for part in (x[::2], x[1::2]):
            outputs = [features(network, name, TensorDataset(part)) for network, name in sides]
            halves.append([f.unflatten(1, (6, -1)).movedim(1, -1).flatten(0, -2) for f in outputs])
        (a, b), (c, d) = halves
        found = stitching_map(a, b)
        residual = (c @ found.weight + found.bias - d).square().sum() / (d - b.mean(0)).square().sum()
    scores = score_stitched(Stitched(front, layer, back, back_layer, found), [(x[1::2], y[1::2])])
    return scores, 1 - float(residual)


def test_values_are_those_of_stitched_networks_put_together_by_hand():
    network, other = Convolutional(6), Convolutional(6, seed=1)
    found, measure, *_ = measured(network, other)
    values = {key: value for key, value in found.numbers.items() if key.layer == "norm"}
    for way, (front, back) in {"": (network, other), "_back": (other, network)}.items():
        scores, r2 = by_hand(front, "norm", back, "norm")
        assert values[Key(f"stitching{way}", "features", "norm")] == pytest.approx(scores.relative)
        entropy = values[Key(f"stitching{way}_cross_entropy", "features", "norm")]
        assert entropy == pytest.approx(scores.cross_entropy, rel=1e-4)
        assert values[Key(f"stitching{way}_r2", "features", "norm")] == pytest.approx(r2, abs=1e-4)
    x, y = labelled().tensors
    none = score_stitched(Stitched(network.eval(), "norm", other.eval(), "norm", None), [(x[1::2], y[1::2])])
    assert values[Key("stitching_none", "features", "norm")] == pytest.approx(none.relative)
    assert set(measure.scales()) == {key.measure for key in found.numbers}


def test_a_network_takes_its_own_place():
    network = Convolutional(6)
    found, *_ = measured(network, network)
    for key, value in found.numbers.items():
        if key.measure in ("stitching", "stitching_back", "stitching_none"):
            assert value == 1
        if key.measure.endswith("_r2"):
            assert value == pytest.approx(1, abs=1e-5)


def test_widths_grids_and_tokens_and_without_targets():
    found, *_ = measured(Convolutional(6, stride=2), Convolutional(5, seed=1), data=[(x,) for x, _ in labelled()])
    assert all(math.isfinite(value) for value in found.numbers.values())
    assert not any(key.measure == "stitching_none" for key in found.numbers)
    found, *_ = measured(Tokens(8), Tokens(6, seed=1), {"blocks.0": "blocks.1"})
    assert all(math.isfinite(value) for value in found.numbers.values())
    assert not found.problems


def test_every_pair_of_layers_and_layers_that_do_not_fit():
    network, other = Convolutional(6), Convolutional(6, seed=1)
    found, *_ = measured(network, other, every_pair=True)
    (matrix,) = found.matrices
    diagonal = [found.numbers[Key("stitching", "features", layer)] for layer in LAYERS]
    np.testing.assert_allclose(np.diag(matrix.values), diagonal, rtol=1e-6)
    scores, _ = by_hand(network, "norm", other, "second")
    assert matrix.values[0, 1] == pytest.approx(scores.relative)
    with pytest.warns(UserWarning, match=r"not stitched: norm with body.1 \(positions do not correspond"):
        found, *_ = measured(network, Dense(20), {"norm": "body.1", "head": "head"}, labelled(80), 80)
    assert {key.layer for key in found.numbers} == {"head"}
    with pytest.raises(ValueError, match=r"no layer can be stitched: norm with body.1 .positions do not correspond"):
        measured(network, Dense(20), {"norm": "body.1"})


def test_few_rows_are_warned_of_and_a_ridge_is_offered():
    with pytest.warns(UserWarning, match=r"too few for body.1 \(8 rows for 20 channels\).*fewer rows than 10 times"):
        measured(Dense(20), Dense(20, seed=1), {"body.1": "body.1"}, size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured(Convolutional(6), Convolutional(6, seed=1))


def test_controls_are_measured_once_and_a_measurement_stays_within_its_passes():
    network, other = Convolutional(6), Convolutional(6, seed=1)
    _, measure, sides, pairs = measured(network, other)
    for side in (network, other):
        side.ran.clear()
    again = measure.compare(*sides, pairs)
    # Two halves in batches of 24 and 8; the first one runs up to `second`, the other one whole, and on for each layer.
    for side in (network, other):
        assert side.ran.count("first") == 4
        assert side.ran.count("head") == 2 * (1 + len(LAYERS))
    assert len([key for key in again.numbers if key.measure == "stitching_untrained"]) == len(LAYERS)


def test_controls_are_those_of_the_start_after_resuming():
    def engine(network, state=None, **options):
        measures = [Stitching(**options)]
        given = QUICK | {"measures": measures, "network": network, "probe": labelled(), "reference": other}
        return SimilarityEngine(**given, state=state)

    def controls(engine, epoch):
        values = engine.measure(epoch=epoch).by_key
        return {key: value for key, value in values.items() if key.measure in ("stitching_none", "stitching_untrained")}

    network, other = Convolutional(6), Convolutional(6, seed=1)
    before = engine(network)
    start, state = controls(before, 0), before.state_dict()
    with torch.no_grad():
        network.norm.weight.mul_(-3)
    assert len(start) == 2
    assert controls(engine(network, state), 1) == start
    assert controls(engine(network), 1) != start
    assert controls(engine(network, state, ridge=0.5), 1) != start  # which are of other maps


def test_looking_which_layers_fit_runs_each_of_them_once():
    networks = Convolutional(6), Convolutional(6, seed=1)
    layers = {name: name for name in ("first", "norm", "relu", "second")}
    runner = ProbeRunner(Probe(DataLoader(labelled(), batch_size=24), SAMPLES), Sketch)
    sides = [Side(runner.try_first_batch(network, list(layers)), runner, network) for network in networks]
    for network in networks:
        network.ran.clear()
    assert Stitching(every_pair=True).refuse(*sides, Pairs(layers)) is None
    assert [network.ran.count("first") for network in networks] == [4, 4]


def test_features_that_are_not_finite_are_said_to_be():
    network = Convolutional(6)
    with torch.no_grad():
        network.norm.bias[0] = torch.nan
    found, *_ = measured(network, Convolutional(6, seed=1), {"norm": "norm"})
    assert math.isnan(found.numbers[Key("stitching", "features", "norm")])
    assert "NaN or infinite" in found.problems[Key("stitching", "features", "norm")]


@pytest.mark.parametrize("reference", ["init", "previous"])
def test_training_is_the_same_bit_for_bit_and_every_view_has_the_numbers(tmp_path, reference):
    _, alone = fit(network=new_network(), epochs=2, root=tmp_path)
    state = random_states()
    monitor = SimilarityMonitor(reference, layers=CONVOLUTIONS, measures=("cka", "stitching"), on_error="raise")
    trainer, watched = fit([monitor], network=new_network(), epochs=2, root=tmp_path)
    weights = [network.state_dict().values() for network in (alone, watched)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert random_states() == state
    assert [m.training for m in watched.modules()] == [m.training for m in alone.modules()]
    assert all(not module._forward_hooks for module in watched.modules())
    history = read_history(monitor.directory)
    assert history.scale("stitching_back_r2") == Stitching().scales()["stitching_back_r2"]
    values = history.measurements[-1].by_key
    assert all(math.isfinite(value) for value in values.values())
    names = {name["name"] for name in Page(report_page({"run": history})).data["names"]}
    for layer in CONVOLUTIONS:
        assert f"stitching/features/{layer}" in names
        assert f"similarity/stitching_untrained/features/{layer}" in trainer.callback_metrics
        # The reference is an earlier state of the network, and this network has moved since.
        assert values[Key("stitching_r2", "features", layer)] < 0.99999


def test_the_start_is_kept_where_it_is_gone(tmp_path):
    start, probe = new_network(), digits(300, 420)
    monitor = SimilarityMonitor("init", layers=CONVOLUTIONS[:1], measures="stitching")
    _, network = fit([monitor], network=new_network(), epochs=1, root=tmp_path)
    layer, x = CONVOLUTIONS[0], probe.tensors[0]
    outputs = [features(side.eval(), layer, probe) for side in (network, start)]
    a, b = (f.view(len(x), 6, 8, 8).movedim(1, -1) for f in outputs)
    found = stitching_map(a[::2].flatten(0, -2), b[::2].flatten(0, -2))
    mapped = (a[1::2] @ found.weight + found.bias).movedim(-1, 1)
    rest = start.net[1:]
    with torch.no_grad():
        predicted, own = rest(mapped), start(x[1::2])
    value = monitor.history.measurements[-1].by_key
    entropy = value[Key("stitching_cross_entropy", "features", layer)]
    assert entropy == pytest.approx(float(F.cross_entropy(predicted, own.softmax(1))), rel=1e-4)


def test_accuracy_relative_to_none_says_so():
    data = labelled()
    wrong = TensorDataset(data.tensors[0], torch.full_like(data.tensors[1], 1))
    network = Convolutional(6)
    with torch.no_grad():
        network(data.tensors[0])
        list(network.modules())[-1].bias[0] += 1e3  # predicts the first class, which no sample has
    found, *_ = measured(network, network, data=wrong)
    key = Key("stitching", "features", "norm")
    assert math.isnan(found.numbers[key])
    assert "an accuracy of 0" in found.problems[key]
    assert math.isfinite(found.numbers[Key("stitching_r2", "features", "norm")])


def test_comparisons_of_other_networks_do_not_disturb_each_other():
    narrow, wide = (SimilarityEngine(Convolutional(n), Convolutional(n, seed=1), labelled(), **QUICK) for n in (4, 7))
    assert all(np.isfinite(list(engine.measure().values.values())).all() for engine in (narrow, wide, narrow))
    own = Stitching()  # measures twice: what is without a map between other widths is not that between equal ones
    for width, alike in ((6, True), (7, False)):
        other = Convolutional(width, seed=1)
        history = compare_networks(Convolutional(6), other, labelled(), **QUICK | {"measures": own}, progress=False)
        assert ("stitching_none/features/norm" in history.names) == alike


class Tied(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()))


def test_tied_weights_stay_tied_in_the_untrained_front():
    untrained = untrained_weights(Tied(0))
    assert "second.weight" not in untrained
    x = torch.randn(128, 5, generator=torch.manual_seed(3))
    history = compare_networks(Tied(0), Tied(1), x, layers=["first"], measures="stitching", progress=False)
    assert np.isfinite(history.trajectory("stitching_untrained", layer="first").values).all()
