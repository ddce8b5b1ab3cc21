from __future__ import annotations

import math
import warnings
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from lightning_sim._measurement import Measurement, split_name
from lightning_sim.correlations import correlation_names, is_correlation, live_correlations
from lightning_sim.figures import correlation_figure
from lightning_sim.history import SimilarityHistory

from .loggers.runs import HOSTILE

OUTPUTS = ("jsd", "rank_correlation")


def drifting(epochs: int, layers: tuple[str, ...] = ("conv", "fc", "head", "last"), seed: int = 0) -> SimilarityHistory:
    """Every layer drifts away in its own random way, and so do the outputs."""
    random = np.random.default_rng(seed)
    history = SimilarityHistory({"layers": {layer: layer for layer in layers}})
    for epoch in range(epochs):
        values = {f"{m}/features/{layer}": 4 * random.uniform() - epoch for m in ("cka", "nbs") for layer in layers}
        values |= {"wcka/weights/conv": 0.5, "agreement": 0.5, "seconds": 1.0}
        values |= {"jsd": epoch + 4 * random.uniform(), "rank_correlation": 4 * random.uniform() - epoch}
        history.append(Measurement(epoch, 10 * epoch, values))
    return history


def fisher(r: float, n: int) -> list[float]:
    return [math.tanh(math.atanh(r) + sign * stats.norm.ppf(0.975) / math.sqrt(n - 3)) for sign in (-1, 1)]


def test_correlations_are_those_of_scipy() -> None:
    history = drifting(9)
    live = live_correlations(history)
    for measure in ("cka", "nbs"):
        for layer in history.layers:
            x = history.trajectory(measure, layer=layer).values
            for output in OUTPUTS:
                y = history.trajectory(output).values
                pearson, spearman = stats.pearsonr(x, y), stats.spearmanr(x, y)
                expected = {
                    "pearson": pearson.statistic,
                    "pearson_low": pearson.confidence_interval().low,
                    "pearson_high": pearson.confidence_interval().high,
                    "spearman": spearman.statistic,
                    "spearman_low": fisher(spearman.statistic, 9)[0],
                    "spearman_high": fisher(spearman.statistic, 9)[1],
                    "slope": np.polyfit(x, y, 1)[0],
                }
                got = {name: live[f"{measure}_{output}_{name}/features/{layer}"] for name in expected}
                assert got == pytest.approx(expected, abs=1e-9)
                result = history.correlation(measure, output, layer=layer)
                assert result == pytest.approx(
                    (
                        *(expected[name] for name in ("pearson", "pearson_low", "pearson_high")),
                        pearson.pvalue,
                        got["slope"],
                    ),
                    abs=1e-9,
                )
                ranks = history.correlation(measure, output, layer=layer, method="spearman", confidence=0.5)
                assert ranks.value == pytest.approx(expected["spearman"], abs=1e-12)
                assert expected["spearman_low"] < ranks.low < ranks.high < expected["spearman_high"]


def test_over_layers_within_an_epoch() -> None:
    history = drifting(6)
    for epoch in (2, 5):
        values = history.measurements[epoch].values
        x, y = ([values[f"{m}/features/{layer}"] for layer in history.layers] for m in ("cka", "nbs"))
        expected = stats.pearsonr(x, y).statistic
        assert history.correlation("cka", "nbs", epoch=epoch).value == pytest.approx(expected, abs=1e-12)
    assert live_correlations(history)["cka_nbs_pearson"] == history.correlation("cka", "nbs").value
    assert history.correlation("nbs", "cka", layer="fc").value == pytest.approx(
        stats.pearsonr(*(history.trajectory(m, layer="fc").values for m in ("nbs", "cka"))).statistic, abs=1e-12
    )
    both = (history.trajectory(output).values for output in OUTPUTS)
    assert history.correlation(*OUTPUTS).value == pytest.approx(stats.pearsonr(*both).statistic, abs=1e-12)
    with pytest.raises(ValueError, match="nothing was measured at epoch 7; epochs are 0, 1"):
        history.correlation("cka", "nbs", epoch=7)
    with pytest.raises(ValueError, match="no layer has cca/features in this measurement; measured was cka, nbs"):
        history.correlation("cca", "nbs")
    with pytest.raises(ValueError, match="nothing was measured; epochs are none"):
        SimilarityHistory({}).correlation("cka", "nbs")
    with pytest.raises(ValueError, match="`epoch` is for correlations over layers"):
        history.correlation("cka", "jsd", layer="fc", epoch=1)
    with pytest.raises(ValueError, match="give `layer`: cka/features was measured for conv, fc"):
        history.correlation("cka", "jsd")
    with pytest.raises(ValueError, match="`method` must be one of 'pearson', 'spearman', got 'kendall'"):
        history.correlation("cka", "jsd", layer="fc", method="kendall")  # type: ignore[arg-type]


def test_they_start_with_the_fourth_measurement_and_have_the_names_announced() -> None:
    assert live_correlations(drifting(3)) == {}
    history = drifting(4)
    live = live_correlations(history)
    assert list(live) == correlation_names(history.names)
    assert all(is_correlation(name) for name in live)
    assert not any(is_correlation(name) for name in history.names)
    assert len(live) == 4 * 28 + 7
    assert not np.isnan(list(live.values())).any()


def test_fifty_layers_do_not_flood_the_loggers() -> None:
    history = drifting(5, tuple(f"layer.{i}" for i in range(50)))
    live = live_correlations(history)
    assert list(live) == correlation_names(history.names)
    per_layer = Counter(split_name(name)[2] for name in live)
    assert per_layer.pop(None) == 7
    assert set(per_layer.values()) == {6}
    assert len(per_layer) == 50


def test_undefined_correlations_are_nan_in_silence() -> None:
    history = drifting(6)
    rounding = np.spacing(np.float32(1)) * np.array([0, -1, 0, -0.5, -1, 0])
    for index, measurement in enumerate(history.measurements):
        measurement.values["cka/features/conv"] = 0.25
        measurement.values["cka/features/fc"] = 1 + rounding[index]
        measurement.values["cka/features/head"] = math.nan if index in (1, 2, 3) else index
        measurement.values["nbs/features/conv"] = math.inf if index == 3 else index**2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        live = live_correlations(history)
    undefined = {name for name, value in live.items() if math.isnan(value)}
    assert undefined == {
        name
        for name in live
        if split_name(name)[0].startswith(("cka_jsd", "cka_rank")) and split_name(name)[2] in ("conv", "fc", "head")
    }
    kept = [0, 1, 2, 4, 5]  # a failed measurement does not spoil the others
    expected = stats.pearsonr([i**2 for i in kept], history.trajectory("jsd").values[kept]).statistic
    assert live["nbs_jsd_pearson/features/conv"] == pytest.approx(expected, abs=1e-12)
    assert all(map(math.isnan, history.correlation(layer="fc")))


def test_correlations_stay_out_of_names_and_measures_but_not_out_of_the_table() -> None:
    history = drifting(4, HOSTILE)
    plain = (history.names, history.measures, history.layers)
    history.measurements[-1].values.update(live_correlations(history))
    assert (history.names, history.measures, history.layers) == plain
    (value,) = history.trajectory("cka_jsd_slope", layer="../../x").values
    assert value == live_correlations(history)["cka_jsd_slope/features/../../x"]
    rows = [row for row in history.to_records() if row["measure"] == "nbs_jsd_pearson"]
    assert [row["layer"] for row in rows] == list(HOSTILE)


@pytest.mark.parametrize(("count", "panels"), [(1, 1), (5, 5), (12, 12), (30, 12)])
def test_a_scatter_shows_the_points_by_epoch_and_the_fitted_line(count: int, panels: int) -> None:
    history = drifting(7, tuple(f"layer {i}" for i in range(count)))
    figure = correlation_figure(history, "nbs", "rank_correlation")
    figure.canvas.draw()
    found = [axes for axes in figure.axes if axes.get_xlabel()]
    assert len(found) == panels
    for axes, layer in ((found[0], "layer 0"), (found[-1], f"layer {count - 1}")):
        x, y = history.trajectory("nbs", layer=layer).values, history.trajectory("rank_correlation").values
        np.testing.assert_allclose(axes.collections[0].get_offsets(), np.stack([x, y], 1))
        np.testing.assert_array_equal(axes.collections[0].get_array(), range(7))
        slope, intercept = np.polyfit(x, y, 1)
        (line,) = axes.lines
        np.testing.assert_allclose(line.get_ydata(), slope * line.get_xdata() + intercept, atol=1e-9)
        assert axes.get_title(loc="left").startswith(f"{layer}\nr = {stats.pearsonr(x, y).statistic:.2f} [")


def test_scatters_of_little_are_drawn_and_of_nothing_refused() -> None:
    history = drifting(2, HOSTILE)
    history.measurements[0].values["jsd"] = math.nan
    figure = correlation_figure(history)
    figure.canvas.draw()
    assert figure.axes[0].get_title(loc="left").endswith("r is undefined")
    assert not figure.axes[0].lines
    with pytest.raises(ValueError, match="no pairs of cka/gradients and jsd in this history; it holds cka, nbs"):
        correlation_figure(history, representation="gradients")
