from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from lightning_sim.record import Key, Measurement, SimilarityHistory
from lightning_sim.record.correlations import live_correlations
from lightning_sim.views import correlation_figure

from ..loggers.runs import HOSTILE

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
    live = live_correlations(history.measurements)
    for measure in ("cka", "nbs"):
        for layer in history.layers:
            x = history.trajectory(measure, layer=layer).values
            for output in OUTPUTS:
                y = history.trajectory(output).values
                pearson, spearman = stats.pearsonr(x, y), stats.spearmanr(x, y)
                interval = pearson.confidence_interval()
                slope = np.polyfit(x, y, 1)[0]
                expected = (pearson.statistic, interval.low, interval.high, pearson.pvalue, slope)
                assert history.correlation(measure, output, layer=layer) == pytest.approx(expected, abs=1e-9)
                ranks = history.correlation(measure, output, layer=layer, method="spearman")
                expected = (spearman.statistic, *fisher(spearman.statistic, 9))
                assert ranks[:3] == pytest.approx(expected, abs=1e-9)
                half = history.correlation(measure, output, layer=layer, method="spearman", confidence=0.5)
                assert ranks.low < half.low < half.high < ranks.high
                if (measure, output) == ("cka", "jsd"):
                    logged = live[Key("cka_jsd_pearson", "features", layer)]
                    assert logged == pytest.approx(pearson.statistic, abs=1e-9)


def test_over_layers_within_an_epoch() -> None:
    history = drifting(6)
    for epoch in (2, 5):
        values = history.measurements[epoch].values
        x, y = ([values[f"{m}/features/{layer}"] for layer in history.layers] for m in ("cka", "nbs"))
        expected = stats.pearsonr(x, y).statistic
        assert history.correlation("cka", "nbs", epoch=epoch).value == pytest.approx(expected, abs=1e-12)
    assert history.correlation("nbs", "cka", layer="fc").value == pytest.approx(
        stats.pearsonr(*(history.trajectory(m, layer="fc").values for m in ("nbs", "cka"))).statistic, abs=1e-12
    )
    both = (history.trajectory(output).values for output in OUTPUTS)
    assert history.correlation(*OUTPUTS).value == pytest.approx(stats.pearsonr(*both).statistic, abs=1e-12)
    with pytest.raises(ValueError, match="nothing was measured at epoch 7; epochs are 0, 1"):
        history.correlation("cka", "nbs", epoch=7)
    with pytest.raises(ValueError, match="no layer has cca, features in this measurement; it holds cka, nbs, wcka"):
        history.correlation("cca", "nbs")
    with pytest.raises(ValueError, match="nothing was measured; epochs are none"):
        SimilarityHistory({}).correlation("cka", "nbs")
    with pytest.raises(ValueError, match="`epoch` is for correlations over layers"):
        history.correlation("cka", "jsd", layer="fc", epoch=1)
    with pytest.raises(ValueError, match="give `layer`: cka, features was measured for conv, fc"):
        history.correlation("cka", "jsd")
    with pytest.raises(ValueError, match="`method` must be one of 'pearson', 'spearman', got 'kendall'"):
        history.correlation("cka", "jsd", layer="fc", method="kendall")  # type: ignore[arg-type]


def test_from_the_fourth_measurement_on_one_number_is_logged_for_each_layer() -> None:
    assert live_correlations(drifting(3).measurements) == {}
    layers = tuple(f"layer.{i}" for i in range(50))
    live = live_correlations(drifting(4, layers).measurements)
    assert list(live) == [Key("cka_jsd_pearson", "features", layer) for layer in layers]
    assert not np.isnan(list(live.values())).any()


def test_what_the_measuring_took_is_correlated_like_any_number() -> None:
    jsd, seconds = [0.1, 0.2, 0.4, 0.3, 0.7], [3.0, 1.0, 2.0, 5.0, 4.0]
    numbers = zip(jsd, seconds, strict=True)
    history = SimilarityHistory({}, [Measurement(e, e, {"jsd": j, "seconds": s}) for e, (j, s) in enumerate(numbers)])
    expected = stats.pearsonr(jsd, seconds).statistic
    assert history.correlation("jsd", "seconds").value == pytest.approx(expected, abs=1e-6)


def test_conditions_are_correlated_with_their_own_divergence() -> None:
    history = SimilarityHistory({})
    for epoch in range(5):
        values = {Key("cka", "features", "a"): epoch, Key("jsd"): -epoch}
        values |= {key._replace(condition="fog"): epoch for key in values}
        history.append(Measurement(epoch, epoch, values))
    live = live_correlations(history.measurements)
    assert {key.name: round(value, 6) for key, value in live.items()} == {
        "cka_jsd_pearson/features/a": -1.0,
        "cka_jsd_pearson/features@fog/a": 1.0,
    }


def test_undefined_correlations_are_nan_in_silence() -> None:
    history = drifting(6)
    rounding = np.spacing(np.float32(1)) * np.array([0, -1, 0, -0.5, -1, 0])
    for index, measurement in enumerate(history.measurements):
        measurement.by_key[Key("cka", "features", "conv")] = 0.25
        measurement.by_key[Key("cka", "features", "fc")] = 1 + rounding[index]
        measurement.by_key[Key("cka", "features", "head")] = math.nan if index in (1, 2, 3) else index
        measurement.by_key[Key("nbs", "features", "conv")] = math.nan if index == 3 else index**2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        live = live_correlations(history.measurements)
    assert {key.layer for key, value in live.items() if math.isnan(value)} == {"conv", "fc", "head"}
    assert not math.isnan(live[Key("cka_jsd_pearson", "features", "last")])
    kept = [0, 1, 2, 4, 5]  # a failed measurement does not spoil the others
    expected = stats.pearsonr([i**2 for i in kept], history.trajectory("jsd").values[kept]).statistic
    assert history.correlation("nbs", "jsd", layer="conv").value == pytest.approx(expected, abs=1e-12)
    assert all(map(math.isnan, history.correlation(layer="fc")))


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
    history.measurements[0].by_key[Key("jsd")] = math.nan
    figure = correlation_figure(history)
    figure.canvas.draw()
    assert figure.axes[0].get_title(loc="left").endswith("r is undefined")
    assert not figure.axes[0].lines
    with pytest.raises(ValueError, match="no pairs of cka/gradients and jsd in this history; it holds cka, nbs"):
        correlation_figure(history, representation="gradients")


def test_under_a_condition_of_the_input() -> None:
    random = np.random.default_rng(3)
    names = ("cka/features@fog/conv", "cka/features@fog/fc", "nbs/features@fog/conv", "nbs/features@fog/fc", "jsd/fog")
    clean = ("cka/features/conv", "jsd")
    drawn = random.uniform(size=(7, len(names) + len(clean)))
    history = SimilarityHistory(
        {}, [Measurement(n, n, dict(zip((*names, *clean), row, strict=True))) for n, row in enumerate(drawn)]
    )
    expected = stats.pearsonr(drawn[:, 0], drawn[:, 4]).statistic
    found = history.correlation("cka", "jsd", layer="conv", condition="fog")
    assert found.value == pytest.approx(expected, abs=1e-6)  # numbers are kept as float32
    with pytest.raises(ValueError, match="fog"):
        history.correlation("cka", "jsd", layer="conv", condition="frog")
