"""Measures that the package does not know, through training, loggers, record and report."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import scipy.spatial
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.regression import CosineSimilarity

from lightning_sim import SimilarityMonitor, read_history
from lightning_sim.functional import mutual_knn, normalized_bures_similarity, procrustes_distance, pwcca
from lightning_sim.measures import Key, LayerFunction, Measure, OutputFunction, Pairs, Scale, Side, Values
from lightning_sim.views import report_page

from ..callbacks.training import CONVOLUTIONS, digits, features, fit, new_network
from ..loggers.test_tensorboard import charts_of, events_of
from ..views.test_report import Page

PROBE = digits(300, 420)


def disparity(x: Tensor, y: Tensor) -> float:
    """Of a package that is not ours."""
    return scipy.spatial.procrustes(x.numpy(), y.numpy())[2]


def confidence_gap(a: Tensor, b: Tensor) -> Tensor:
    return a.softmax(1).amax(1).mean() - b.softmax(1).amax(1).mean()


class Drift(Measure):
    """How far the parameters have moved, an object of one's own."""

    name = "drift"
    scale = Scale(low=0, same=0, unit="L2", group="parameters")
    needs = frozenset({"weights"})

    def keep(self, side: Side) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in side.live.named_parameters()}

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        before, now = theirs.kept(self), self.keep(mine)
        squared = sum(float((now[name] - value).square().sum()) for name, value in before.items())
        return Values.one(Key(self.name), squared**0.5)


def test_functions_metrics_and_objects_are_monitored_beside_the_built_in_ones(tmp_path: Any) -> None:
    network = new_network()
    before = {layer: features(network, layer, PROBE) for layer in CONVOLUTIONS}
    outputs, weights = features(network, "net", PROBE), [value.clone() for value in network.parameters()]
    measures = ("cka", disparity, "pwcca", LayerFunction(mutual_knn, every_pair=True), LinearR(), Drift())
    measures += (OutputFunction(confidence_gap, scale=Scale(low=-1, high=1, same=0)),)
    monitor = SimilarityMonitor(layers=CONVOLUTIONS, measures=measures)
    logger = TensorBoardLogger(tmp_path)
    trainer, network = fit([monitor], network=network, epochs=2, root=tmp_path, logger=logger)
    now = {layer: features(network, layer, PROBE) for layer in CONVOLUTIONS}
    last = monitor.history.measurements[-1]
    for layer in CONVOLUTIONS:
        x, y = now[layer], before[layer]
        expected = {"disparity": disparity(x, y), "pwcca": pwcca(x, y), "mutual_knn": mutual_knn(x, y)}
        expected["LinearR"] = np.corrcoef(x.mean(1), y.mean(1))[0, 1]
        for name, value in expected.items():
            assert last.by_key[Key(name, "features", layer)] == pytest.approx(float(value), abs=2e-4), name
    logits = features(network, "net", PROBE)
    assert last.by_key[Key("confidence_gap")] == pytest.approx(float(confidence_gap(logits, outputs)), abs=1e-5)
    moved = sum((a - b).square().sum() for a, b in zip(network.parameters(), weights, strict=True)) ** 0.5
    assert last.by_key[Key("drift")] == pytest.approx(float(moved.detach()), rel=1e-5)
    # Of every layer with every layer where it was asked for, and nowhere else.
    assert [matrix.measure for matrix in last.matrices] == ["cka", "mutual_knn"]
    other = last.matrices[1].values[0, 1]
    assert other == pytest.approx(float(mutual_knn(now[CONVOLUTIONS[0]], before[CONVOLUTIONS[1]])), abs=1e-6)
    # Record, logger and report know them by the scale in the record.
    history = read_history(logger.log_dir)
    assert history == monitor.history
    assert history.scale("drift") == Drift.scale
    charts = charts_of(events_of(logger))["similarity"]
    layered = {f"{name}, features" for name in ("cka", "disparity", "pwcca", "mutual_knn", "LinearR")}
    assert set(charts) == layered | {"drift", "outputs", "means over layers"}
    shown = {name["name"]: name["scale"] for name in Page(report_page({"run": history})).data["names"]}
    assert shown["confidence_gap"] == {"low": -1, "high": 1, "same": 0, "unit": "", "group": "outputs"}
    assert shown["drift"]["unit"] == "L2"
    assert float(trainer.callback_metrics[f"similarity/disparity/features/{CONVOLUTIONS[0]}"]) == pytest.approx(
        last.by_key[Key("disparity", "features", CONVOLUTIONS[0])]
    )


class LinearR(Metric):
    """Pearson's correlation of the samples' mean activation; one that needs all samples at once would do as well."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor) -> None:
        a, b = x.double().mean(1), y.double().mean(1)
        ones = torch.ones_like(a)
        pairs = ((ones, ones), (a, ones), (b, ones), (a, a), (a, b), (b, b))
        self.sums += torch.stack([(u * v).sum() for u, v in pairs])

    def compute(self) -> Tensor:
        n, a, b, aa, ab, bb = self.sums
        return (n * ab - a * b) / ((n * aa - a * a) * (n * bb - b * b)).sqrt()


def test_one_failing_measure_fails_alone(tmp_path: Any) -> None:
    def broken(x: Tensor, y: Tensor) -> float:
        raise KeyError("no such thing")

    def sometimes_nan(x: Tensor, y: Tensor) -> float:
        return math.nan

    class Broken(Drift):
        name = "broken_object"

        def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
            raise RuntimeError("not today")

    monitor = SimilarityMonitor(layers=CONVOLUTIONS, measures=(broken, "cka", sometimes_nan, Broken(), "jsd"))
    with pytest.warns(UserWarning, match="SimilarityMonitor") as caught:
        fit([monitor], epochs=1, root=tmp_path)
    said = [str(warning.message) for warning in caught if "SimilarityMonitor" in str(warning.message)]
    layers = ", ".join(CONVOLUTIONS)
    assert f"{layers} could not be computed: KeyError: 'no such thing'" in "\n".join(said)
    assert "broken_object could not be computed: RuntimeError: not today" in "\n".join(said)
    assert f"{layers} is NaN, and the function gave no reason" in "\n".join(said)
    values = monitor.history.measurements[-1].by_key
    unknown = {key.measure for key, value in values.items() if math.isnan(value)}
    assert unknown == {"broken", "sometimes_nan", "broken_object"}
    assert {"cka", "jsd"} <= {key.measure for key in values}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_buckets": 64}, "120 .* share 64 buckets: set num_buckets=128"),
        ({"pool": "tokens"}, 'pool="tokens" .*: use pool="mean"'),
        ({"representations": ("features", "transport_map")}, 'the representation "transport_map" .*: leave it out'),
        ({"sketch": "tang2020"}, 'sketch="tang2020" .*: leave it out'),
    ],
)
def test_functions_of_samples_need_each_of_them(tmp_path: Any, settings: Any, message: str) -> None:
    monitor = SimilarityMonitor(layers=CONVOLUTIONS, measures=disparity, **settings)
    with pytest.raises(ValueError, match=rf"disparity .it is a function of single samples, and {message}"):
        fit([monitor], epochs=1, root=tmp_path)


def test_what_a_measure_raises_when_it_is_asked_is_why_it_does_not_apply(tmp_path: Any) -> None:
    class Unsure(Drift):
        def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
            raise KeyError("heads")

    with pytest.raises(ValueError, match=r"measures that do not apply: drift \(KeyError: 'heads'\)"):
        fit([SimilarityMonitor(measures=Unsure())], epochs=1, root=tmp_path)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300])
def test_numbers_that_float32_cannot_hold_are_nan_and_say_so(tmp_path: Any, value: float) -> None:
    def endless(x: Tensor, y: Tensor) -> float:
        return value

    monitor = SimilarityMonitor(layers="net.0", measures=endless)
    with pytest.warns(UserWarning, match=rf"net\.0 is {re.escape(f'{value:.3g}')}, beyond the range of float32"):
        fit([monitor], epochs=1, root=tmp_path)
    assert math.isnan(monitor.history.trajectory("endless", layer="net.0").values[-1])
    monitor = SimilarityMonitor(layers="net.0", measures=endless, on_error="raise")
    with pytest.raises(RuntimeError, match="beyond the range of float32"):
        fit([monitor], epochs=1, root=tmp_path)


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        (lambda x, y: 0.0, "needs a name without / and @, got '<lambda>' of <function"),
        ((procrustes_distance, "procrustes_distance"), "different names, got procrustes_distance more than once"),
        ((), "`measures` is empty"),
        ("no_such_measure", "must be of cka, nbs, wcka.*functions, metrics or Measures, got 'no_such_measure' .str."),
        (3, "functions, metrics or Measures, got 3"),
        (Drift, r"functions, metrics or Measures, got <class .*Drift'> .type."),
        ((CosineSimilarity,), r"functions, metrics or Measures, got <class 'torch.*Similarity'> .ABCMeta."),
        ([["cka"]], r"functions, metrics or Measures, got \['cka'\] .list."),
        ({"cka": 1}, "functions, metrics or Measures, got {'cka': 1}"),
    ],
)
def test_what_is_no_measure_is_refused_with_words(measures: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimilarityMonitor(measures=measures)


class CountedCalls(list[object]):
    """A function that can be iterated over as well, and has no hash."""

    __name__ = "calls"

    def __call__(self, x: Tensor, y: Tensor) -> int:
        self.append(None)
        return len(self)


def test_one_measure_needs_no_list_and_a_metric_is_one() -> None:
    metric, calls = CosineSimilarity(), CountedCalls()
    several = {"cka": "cka", "disparity": disparity, "drift": Drift(), "CosineSimilarity": metric, "calls": calls}
    for name, measures in several.items():
        assert [measure.name for measure in SimilarityMonitor(measures=measures).settings.measures] == [name]


def test_scales_survive_the_record() -> None:
    for scale in (Scale(), Scale(low=0), Scale(low=-1, high=1, same=1, unit="nats", group="outputs")):
        state = json.loads(json.dumps(scale.to_state() | {"of_a_newer_version": 1}))
        assert Scale.from_state(state) == scale
    with pytest.raises(ValueError, match="`low` must be below `high`, got 1 and 0"):
        Scale(low=1, high=0)


def test_matrices_are_of_the_measures_that_are_asked_for(tmp_path):
    network = new_network()
    before = {layer: features(network, layer, PROBE) for layer in CONVOLUTIONS}
    monitor = SimilarityMonitor(
        layers=CONVOLUTIONS, matrices=("nbs", "mutual_knn"), measures=("cka", "nbs", "mutual_knn")
    )
    fit([monitor], network=network, epochs=1, root=tmp_path)
    now = {layer: features(network, layer, PROBE) for layer in CONVOLUTIONS}
    assert [matrix.measure for matrix in monitor.history.measurements[-1].matrices] == ["nbs", "mutual_knn"]
    for name, function in (("nbs", normalized_bures_similarity), ("mutual_knn", mutual_knn)):
        matrix = monitor.history.matrix(name).values
        expected = [[float(function(now[mine], before[theirs])) for theirs in CONVOLUTIONS] for mine in CONVOLUTIONS]
        assert matrix == pytest.approx(np.array(expected), abs=2e-4), name
    # What was given is as it was, and so is the next monitor.
    own = LayerFunction(mutual_knn)
    assert SimilarityMonitor(measures=[own], matrices="mutual_knn").settings.measures[0].every_pair
    assert not own.every_pair
    assert [m.name for m in SimilarityMonitor().settings.measures if getattr(m, "every_pair", False)] == ["cka"]
    assert not any(getattr(m, "every_pair", False) for m in SimilarityMonitor(matrices=()).settings.measures)
    with pytest.raises(ValueError, match=r"`matrices` must be of .* cka, nbs; got \['jsd'\]"):
        SimilarityMonitor(matrices=("cka", "jsd"))
