from __future__ import annotations

import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lightning_sim.figures import heatmap_figure, heatmap_pixels
from lightning_sim.figures.heatmap import _kept
from lightning_sim.measures import MEASURES
from lightning_sim.record import Key, Measurement, Scale, SimilarityHistory, SimilarityMatrix
from lightning_sim.views import comparison_figure, correlation_figure

from ..loggers.runs import HOSTILE, example_history


def matrix_of(values: np.ndarray, measure: str = "cka", chance_deviations: float | None = None) -> SimilarityMatrix:
    rows, columns = values.shape
    return SimilarityMatrix(
        measure,
        "features",
        tuple(f"mine {i}" for i in range(rows)),
        tuple(f"theirs {i}" for i in range(columns)),
        values,
        chance_deviations=chance_deviations,
    )


def image_of(figure: Figure) -> Axes:
    (axes,) = [axes for axes in figure.axes if axes.images and axes.get_xlabel()]
    return axes


def drawn(figure: Figure, path: Path) -> Figure:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(path / "figure.png")
    return figure


def test_rows_are_the_network_and_columns_the_reference(tmp_path: Path) -> None:
    values = np.array([[0.125, 0.25, 0.5], [0.75, 0.875, np.nan]])
    axes = image_of(drawn(matrix_of(values).plot(), tmp_path))
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), values)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["mine 0", "mine 1"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["theirs 0", "theirs 1", "theirs 2"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("layers of the network", "layers of the reference")
    assert axes.yaxis_inverted()  # the first layer on top
    written = {tuple(round(x) for x in text.get_position()): text.get_text() for text in axes.texts}
    assert written == {
        (0, 0): "0.12",
        (1, 0): "0.25",
        (2, 0): "0.50",
        (0, 1): "0.75",
        (1, 1): "0.88",
        (2, 1): "n/a",
    }


@pytest.mark.parametrize(("size", "texts"), [(12, 144), (13, 0)])
def test_values_stand_in_the_cells_of_small_matrices_only(tmp_path: Path, size: int, texts: int) -> None:
    figure = drawn(matrix_of(np.full((size, size), 0.5)).plot(), tmp_path)
    assert len(image_of(figure).texts) == texts


@pytest.mark.parametrize(
    ("scale", "expected"), [(MEASURES["cka"].scale, (0, 1)), (Scale(low=0), (-0.25, 3)), (None, (-0.25, 3))]
)
def test_colours_span_the_range_of_the_measure(
    tmp_path: Path, scale: Scale | None, expected: tuple[float, float]
) -> None:
    figure = drawn(matrix_of(np.array([[-0.25, 3.0]])).plot(scale=scale), tmp_path)
    assert image_of(figure).images[0].get_clim() == expected


@pytest.mark.parametrize("values", [np.full((2, 2), np.nan), np.ones((1, 1))])
@pytest.mark.parametrize("scale", [MEASURES["cka"].scale, None])
def test_degenerate_matrices_are_drawn(tmp_path: Path, values: np.ndarray, scale: Scale | None) -> None:
    drawn(matrix_of(values).plot(scale=scale), tmp_path)


def test_names_of_fifty_layers_do_not_overlap(tmp_path: Path) -> None:
    layers = tuple(f"backbone.layer{i // 12}.{i % 12}.a_rather_long_name" for i in range(50))
    history = example_history(2, layers)
    for figure in (
        history.matrix().plot(),
        history.plot(),
        comparison_figure({"a": history}),
    ):
        axes = image_of(drawn(figure, tmp_path))
        boxes = sorted((text.get_window_extent() for text in axes.get_yticklabels()), key=lambda box: box.y0)
        assert len(boxes) >= 10
        assert all(upper.y0 >= lower.y1 - 1 for lower, upper in pairwise(boxes))
        page = figure.bbox
        assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in boxes)


@pytest.mark.parametrize("chance", [None, 0.2])
@pytest.mark.parametrize("size", [(9, 14), (4, 6)])
def test_a_matrix_of_the_same_layers_is_drawn_without_a_layout(
    size: tuple[int, int], chance: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts: list[Figure] = []
    execute = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda self, fig: (layouts.append(fig), execute(self, fig)))
    _kept.cache_clear()
    heatmaps = [
        matrix_of(np.random.default_rng(seed).uniform(size=size) - (seed == 2), chance_deviations=chance).heatmap(
            f"cka, epoch {seed}", scale
        )
        for seed, scale in enumerate([MEASURES["cka"].scale] * 3)
    ]
    pixels = [heatmap_pixels(heatmap) for heatmap in heatmaps]
    assert len(layouts) == 1
    for heatmap, shown in zip(heatmaps, pixels, strict=True):
        figure = heatmap_figure(heatmap)
        figure.canvas.draw()
        np.testing.assert_array_equal(shown, np.array(figure.canvas.buffer_rgba())[..., :3])
    assert (pixels[0] != pixels[1]).any()


def test_cells_that_chance_explains_are_hatched_and_no_others(tmp_path: Path) -> None:
    """Three lines each, within the cell."""
    values = np.full((8, 9), 0.5)
    values[0, 0], values[2, 5], values[3, 3] = 0.02, -0.02, 0.04
    scale = MEASURES["cka"].scale
    heatmaps = [matrix_of(values, chance_deviations=chance).heatmap(scale=scale) for chance in (0.01, 0.001)]
    axes = image_of(drawn(heatmap_figure(heatmaps[0]), tmp_path))
    centres = [segment.mean(0).round().tolist() for segment in axes.collections[0].get_segments()]
    assert sorted(map(tuple, centres)) == [(0, 0)] * 3 + [(5, 2)] * 3
    assert axes.child_axes[0].get_ylabel() == "hatched: chance explains it"
    hatched, bare = (heatmap_pixels(heatmap) for heatmap in heatmaps)
    assert 50 < (hatched != bare).any(2).sum() < hatched[..., 0].size / 50  # and everything else stays in its place
    unknown = matrix_of(values).heatmap(scale=scale)
    assert image_of(heatmap_figure(unknown)).child_axes[0].get_ylabel() == ""


@pytest.mark.parametrize(("size", "colors"), [(6, True), (7, False)])
def test_dashboards_show_no_numbers_that_are_too_small_to_be_read(size: int, colors: bool) -> None:
    """A cell of one colour alone has no number in it."""
    heatmap = matrix_of(np.full((size, size), 0.9)).heatmap("cka", MEASURES["cka"].scale)
    figure = heatmap_figure(heatmap)
    figure.canvas.draw()
    left, _, _, high = image_of(figure).get_window_extent().extents.astype(int)
    height = figure.canvas.get_width_height()[1]
    cell = heatmap_pixels(heatmap)[height - high + 4 : height - high + 40, left + 4 : left + 40]
    assert (len(np.unique(cell.reshape(-1, 3), axis=0)) > 1) == colors


def test_names_are_thinned_and_shown_without_what_all_begin_with(tmp_path: Path) -> None:
    layers = [f"model.encoder.blocks.{number}.dense" for number in range(54)]
    matrix = SimilarityMatrix("cka", "features", layers, ["a", "b"], np.ones((54, 2)))
    axes = image_of(drawn(matrix.plot(), tmp_path))
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert shown == [f"blocks.{number}.dense" for number in range(0, 54, 3)]
    assert axes.get_ylabel() == "layers of the network, model.encoder.*"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b"]
    figure = drawn(example_history(2, tuple(layers[:3])).plot(), tmp_path)
    legend = next(axes.get_legend() for axes in figure.axes if axes.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == [f"blocks.{number}.dense" for number in range(3)]


def test_the_measurement_before_training_is_the_start_and_not_of_epoch_0(tmp_path: Path) -> None:
    """Of four epochs of ten steps, every epoch or every second one."""
    for moments, at in (
        ([(0, 0), (0, 9), (1, 19), (2, 29), (3, 39)], [-1, 0, 1, 2, 3]),
        ([(0, 0), (1, 19), (3, 39)], [-1, 1, 3]),
    ):
        history = SimilarityHistory({}, [Measurement(*m, {"cka/features/a": 0.1 * m[1], "jsd": 0.5}) for m in moments])
        (axes, _) = drawn(history.plot(), tmp_path).axes
        assert axes.lines[0].get_xdata().tolist() == at
        assert axes.get_xlabel() == "epoch (start: before training)"
        ticks = dict(zip(axes.get_xticks(), (text.get_text() for text in axes.get_xticklabels()), strict=True))
        assert ticks.pop(-1) == "start"
        assert ticks == {tick: f"{tick:g}" for tick in ticks}
        assert 0 in ticks
    (scale,) = correlation_figure(history).axes[0].child_axes
    assert scale.get_ylabel() == "epoch (start: before training)"


def test_lines_are_the_trajectories(tmp_path: Path) -> None:
    history = example_history(4, ("conv", "fc", "head"))
    figure = drawn(history.plot(), tmp_path)
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "nbs, features"]
    assert [line.get_label() for line in axes.lines] == ["conv", "fc", "head"]
    for line, layer in zip(axes.lines, history.layers, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 3])
        np.testing.assert_array_equal(line.get_ydata(), history.trajectory("nbs", layer=layer).values)
    assert axes.get_xlabel() == "epoch"


def test_heatmaps_are_titled_with_their_own_epoch(tmp_path: Path) -> None:
    values = {"cka/features/a": 0.5, "nbs/features/a": 0.5}
    cka, nbs = (matrix_of(np.full((2, 2), 0.5), measure) for measure in ("cka", "nbs"))
    history = SimilarityHistory({}, [Measurement(0, 9, values, (cka, nbs)), Measurement(1, 19, values, (nbs,))])
    for measure, epoch in (("cka", 0), ("nbs", 1)):
        figure = drawn(comparison_figure({"run": history}, measure=measure), tmp_path)
        assert image_of(figure).get_title(loc="left") == f"{measure}, features, epoch {epoch}"
    history.append(Measurement(2, 29, values))
    assert image_of(history.plot()).get_title(loc="left") == "nbs, features, epoch 1"


def test_several_measurements_in_an_epoch_are_drawn_over_steps(tmp_path: Path) -> None:
    history = SimilarityHistory({}, [Measurement(0, step, {"cka/features/a": 1.0}) for step in (5, 10)])
    (axes,) = drawn(history.plot(), tmp_path).axes
    assert (axes.get_xlabel(), axes.lines[0].get_xdata().tolist()) == ("step", [5, 10])


def test_a_history_is_one_panel_per_measure_the_outputs_and_the_last_matrix(tmp_path: Path) -> None:
    history = example_history(3)
    figure = drawn(history.plot(), tmp_path)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["cka, features", "nbs, features", "wcka, weights", "outputs", "cka, features, epoch 2"]
    np.testing.assert_array_equal(image_of(figure).images[0].get_array(), history.matrix(epoch=2).values)


def test_bands_are_as_wide_as_the_errors_say(tmp_path: Path) -> None:
    """Without a band where there is no error, and without a line from one to the next there."""
    errors = (0.01, 0.02, None, 0.05)
    history = SimilarityHistory({})
    for epoch, error in enumerate(errors):
        statistics = {} if error is None else {"standard_error": {Key("jsd"): error}}
        history.append(Measurement(epoch, epoch, {"jsd": 0.5, "agreement": 0.5}, statistics=statistics))
    for figure in (history.plot(), history.trajectory("jsd").plot()):
        axes = next(a for a in drawn(figure, tmp_path).axes if a.get_title(loc="left") == "jsd")
        (band,) = axes.collections
        corners = {tuple(corner) for path in band.get_paths() for corner in path.vertices.round(4).tolist()}
        widths = [(epoch, error) for epoch, error in enumerate(errors) if error is not None]
        assert corners == {(at, round(0.5 + 1.96 * end * e, 4)) for at, e in widths for end in (-1, 1)}
        assert len(band.get_paths()) == 2
    (axes,) = drawn(history.trajectory("agreement").plot(), tmp_path).axes
    assert not axes.collections


def test_lengths_do_not_share_a_panel_with_the_outputs(tmp_path: Path) -> None:
    values = {"mean_embedding/features/a": 300.0, "agreement": 0.5, "fisher_rao_norm": 70.0, "task2vec": 0.9}
    scales = {name: scale.to_state() for m in MEASURES.values() for name, scale in m.scales().items()}
    history = SimilarityHistory({"scales": scales}, [Measurement(0, 5, values), Measurement(1, 10, values)])
    figure = drawn(history.plot(), tmp_path)
    assert {axes.get_title(loc="left"): [line.get_label() for line in axes.lines] for axes in figure.axes} == {
        "mean_embedding, features": ["a"],
        "fisher_rao_norm": ["fisher_rao_norm"],
        "parameters": ["task2vec"],
        "outputs": ["agreement"],
    }


def test_many_outputs_have_a_legend_and_no_colours_of_layers(tmp_path: Path) -> None:
    scales = {f"output {n}": Scale(low=0, high=1).to_state() for n in range(20)}
    history = SimilarityHistory({"scales": scales}, [Measurement(0, 5, dict.fromkeys(scales, 0.5))])
    (axes,) = drawn(history.plot(), tmp_path).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(scales)
    assert not axes.child_axes


def test_runs_are_compared_by_the_matrix_of_their_features(tmp_path: Path) -> None:
    of_features, of_gradients = np.full((1, 1), 0.25), np.full((1, 1), 0.75)
    matrices = [
        SimilarityMatrix("cka", representation, ("a",), ("a",), values)
        for representation, values in (("gradients", of_gradients), ("features", of_features))
    ]
    history = SimilarityHistory({}, [Measurement(0, 5, {"cka/features/a": 0.25}, matrices)])
    figure = drawn(comparison_figure({"run": history}), tmp_path)
    assert image_of(figure).images[0].get_array().tolist() == [[0.25]]


def test_runs_are_compared_on_the_same_scale(tmp_path: Path) -> None:
    runs = {"near": example_history(3, seed=1), "far": example_history(3, seed=2)}
    figure = drawn(comparison_figure(runs), tmp_path)
    upper = [axes for axes in figure.axes if axes.get_title(loc="left") in runs]
    assert [axes.get_title(loc="left") for axes in upper] == ["near", "far"]
    assert upper[0].get_ylim() == upper[1].get_ylim()
    matrices = [axes.images[0].get_array() for axes in figure.axes if axes.images and axes.get_xlabel()]
    for shown, history in zip(matrices, runs.values(), strict=True):
        np.testing.assert_array_equal(shown, history.matrix().values)
    with pytest.raises(ValueError, match="at least one run"):
        comparison_figure({})


def test_names_are_drawn_as_they_are_and_never_as_formulas(tmp_path: Path) -> None:
    history = example_history(2, HOSTILE)
    history.metadata["run"] = "$\\frac{$"
    axes = image_of(drawn(history.matrix().plot("$\\frac{$"), tmp_path))
    shown = [text.get_text().strip() for text in axes.get_yticklabels()]
    assert shown == [name.replace("\n", "\N{REPLACEMENT CHARACTER}") for name in HOSTILE]
    drawn(comparison_figure({"$\\frac{$": history}), tmp_path)
    figure = drawn(history.plot(), tmp_path)
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert len(legends[0].get_texts()) == len(HOSTILE)  # also the one with an underscore


@pytest.mark.parametrize(
    "history", [SimilarityHistory({}), SimilarityHistory({}, [Measurement(0, 0, {"jsd": np.nan})])]
)
def test_histories_without_much_in_them_are_drawn(tmp_path: Path, history: SimilarityHistory) -> None:
    drawn(history.plot(), tmp_path)
    drawn(comparison_figure({"a": history}), tmp_path)


def test_figures_leave_no_global_state() -> None:
    program = """
import sys
import numpy as np
from lightning_sim.record import Measurement, SimilarityHistory, SimilarityMatrix
matrix = SimilarityMatrix("cka", "features", ("a",), ("b",), np.ones((1, 1)))
history = SimilarityHistory({}, [Measurement(0, 0, {"cka/features/a": 1.0, "jsd": 0.5}, (matrix,))])
history.plot().canvas.draw()
history.trajectory("jsd").plot()
history.matrix().plot()
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
