"""Figures of matrices, trajectories and whole runs, as matplotlib Figure objects without any global state.

Names come from networks and files: they are drawn as plain text, never as formulas, and shortened.
All functions need the extra ``plot`` and raise ModuleNotFoundError, naming it, where it is missing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_sim._labels import shortened
from lightning_sim._measurement import FISHER_MEASURES, SimilarityMatrix, split_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_sim.history import SimilarityHistory, Trajectory

    Lines = Mapping[str, Trajectory]

__all__ = [
    "comparison_figure",
    "correlation_figure",
    "history_figure",
    "matrix_figure",
    "trajectories_figure",
    "trajectory_figure",
]

# Measures that live in [0, 1]: one colour means the same in every figure.
_UNIT_RANGE = {"cka", "nbs", "wcka", "mutual_knn", "svcca", "pwcca", "cca"}
_MATRIX_COLORS = "YlGnBu"
_OUTPUT_COLORS = ("#d1495b", "#2e6f95", "#66a182", "#edae49", "#8d5a97")
_DARK, _GREY, _FAINT, _MISSING = "#333333", "#757575", "#e6e6e6", "#cccccc"
_MOST_LEGEND_ENTRIES = 14
_MOST_CELLS_WITH_TEXT = 12
_MOST_SCATTER_PANELS = 12


def matrix_figure(matrix: SimilarityMatrix, title: str | None = None) -> Figure:
    """A layer x layer matrix as a heatmap, with the values in the cells when there are at most 12 x 12.

    Colours run from 0 to 1 for measures in that range, from the lowest to the highest value otherwise; cells
    without a value are grey.
    """
    (rows, columns), most = matrix.values.shape, max(matrix.values.shape)
    side = 0.5 if most <= _MOST_CELLS_WITH_TEXT else max(0.15, 0.26 - 0.002 * most)
    letters = max((len(_label(name)) for name in (*matrix.rows, *matrix.columns)), default=0)
    names = letters * (0.075 if most <= _MOST_CELLS_WITH_TEXT else 0.055)
    figure = _new_figure(max(1.4 + names + side * columns, 3.6), max(0.9 + names + side * rows, 2.8))
    axes = figure.subplots()
    _draw_matrix(axes, matrix, f"{matrix.measure}, {matrix.representation}" if title is None else title, side)
    _add_color_bar(figure, axes)
    return figure


def trajectory_figure(trajectory: Trajectory) -> Figure:
    """One trajectory over the epochs."""
    figure = _new_figure(6.0, 3.4)
    axes = figure.subplots()
    _draw_lines(axes, {trajectory.name: trajectory}, _OUTPUT_COLORS[1:], trajectory.name)
    return figure


def trajectories_figure(history: SimilarityHistory, measure: str = "cka", representation: str = "features") -> Figure:
    """All layers of one measure over the epochs, coloured by depth.

    Raises:
        ValueError: If no layer was measured so.
    """
    lines = _layer_lines(history, measure, representation)
    if not lines:
        held = ", ".join(history.measures) or "nothing"
        raise ValueError(f"no layer has {measure}/{representation} in this history; it holds {held}")
    figure = _new_figure(7.8, 4.0)
    axes = figure.subplots()
    _draw_lines(axes, lines, _depth_colors(len(lines)), f"{measure}, {representation}")
    _explain_layers(figure, [(axes, lines)])
    return figure


def history_figure(history: SimilarityHistory) -> Figure:
    """One panel per measure and representation, one with the outputs together, and the last matrix."""
    kinds = dict.fromkeys(split_name(name)[:2] for name in history.names if name != "seconds")
    panels = {f"{m}, {r}": _layer_lines(history, m, r) for m, r in kinds if r is not None}
    parameters = {name: {name: history.trajectory(name)} for name in FISHER_MEASURES if (name, None) in kinds}
    outputs = _output_lines(history)
    matrix, epoch = _last_matrix(history)
    count = len(panels) + len(parameters) + bool(outputs) + (matrix is not None)
    columns = max(math.ceil(math.sqrt(count)), 1)
    rows = max(math.ceil(count / columns), 1)
    figure = _new_figure(5.0 * columns + 1.0, 3.8 * rows)
    _title_figure(figure, "" if history.run is None else history.run)
    grid = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in grid[count:]:
        axes.remove()
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        _draw_lines(axes, lines, _depth_colors(len(lines)), title)
    _explain_layers(figure, zip(grid, panels.values(), strict=False))
    for axes, (title, lines) in zip(grid[len(panels) :], parameters.items(), strict=False):
        _draw_outputs(axes, lines, title)
    if outputs:
        axes = grid[len(panels) + len(parameters)]
        _draw_outputs(axes, outputs, "outputs")
        _add_legend(axes)
    if matrix is not None:
        title = f"{matrix.measure}, {matrix.representation}, epoch {epoch}"
        _draw_matrix(grid[count - 1], matrix, title, 2.6 / max(matrix.values.shape))
        _add_color_bar(figure, grid[count - 1])
    return figure


def comparison_figure(
    histories: Mapping[str, SimilarityHistory], measure: str = "cka", representation: str = "features"
) -> Figure:
    """Several runs side by side: trajectories of all layers, of the outputs, and the final matrices below.

    Args:
        histories: The runs by the names that are to stand above them.
        measure: What to show of the layers.
        representation: Of what.

    Raises:
        ValueError: If there is no run.
    """
    if not histories:
        raise ValueError("`histories` must hold at least one run, got none")
    lines = {name: _layer_lines(history, measure, representation) for name, history in histories.items()}
    outputs = {name: _output_lines(history) for name, history in histories.items()}
    matrices = {name: _last_matrix(history, measure, representation) for name, history in histories.items()}
    parts = [2.9] + [2.1] * any(outputs.values()) + [3.7] * any(m is not None for m, _ in matrices.values())
    figure = _new_figure(4.3 * len(histories) + 1.4, sum(parts) + 0.5)
    grid = figure.subplots(len(parts), len(histories), squeeze=False, height_ratios=parts)
    for column, name in enumerate(histories):
        first = column == 0
        axes = grid[0, column]
        axes.sharey(grid[0, 0])
        _draw_lines(axes, lines[name], _depth_colors(len(lines[name])), name)
        axes.set_ylabel(f"{measure}, {representation}" if first else "", fontsize=9, color=_GREY)
        if any(outputs.values()):
            axes = grid[1, column]
            axes.sharey(grid[1, 0])
            _draw_outputs(axes, outputs[name])
            axes.set_ylabel("outputs" if first else "", fontsize=9, color=_GREY)
        matrix, epoch = matrices[name]
        if matrix is not None:
            _draw_matrix(grid[-1, column], matrix, f"epoch {epoch}", 2.4 / max(matrix.values.shape))
            _add_color_bar(figure, grid[-1, column])
        elif len(parts) > 1 + any(outputs.values()):
            grid[-1, column].set_axis_off()
    if any(outputs.values()):
        _add_legend(grid[1, -1])
    _explain_layers(figure, zip(grid[0], lines.values(), strict=True))
    return figure


def correlation_figure(
    history: SimilarityHistory, measure: str = "cka", output: str = "jsd", representation: str = "features"
) -> Figure:
    """A measure of layers against one of outputs, a panel per layer: points coloured by epoch, the best-fit line.

    Of more than 12 layers those are shown that lie evenly spaced in depth, the first and the last among them. Above
    each panel stands Pearson's correlation with its 95% interval.

    Raises:
        ValueError: If no layer was measured so, or the outputs were not.
    """
    lines = _layer_lines(history, measure, representation)
    if not lines or output not in _output_lines(history):
        held = ", ".join(history.measures) or "nothing"
        raise ValueError(f"no pairs of {measure}/{representation} and {output} in this history; it holds {held}")
    layers = list(lines)
    count = min(len(layers), _MOST_SCATTER_PANELS)
    shown = [layers[index] for index in np.linspace(0, len(layers) - 1, count).round().astype(int)]
    columns = count if count <= 4 else math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure = _new_figure(2.5 * columns + 1.1, 2.4 * rows + 0.6)
    few = "" if count == len(layers) else f", {count} of {len(layers)} layers"
    _title_figure(figure, f"{output} against {measure} of {representation}{few}")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in list(grid.ravel())[count:]:
        axes.remove()
    for axes, layer in zip(grid.ravel(), shown, strict=False):
        _draw_scatter(axes, history, (measure, output), layer, representation)
        axes.set_xlabel(measure, fontsize=9, color=_GREY)
    for axes in grid[:, 0]:
        axes.set_ylabel(output, fontsize=9, color=_GREY)
    _add_epoch_scale(figure, grid[0, -1])
    return figure


def _draw_scatter(
    axes: Axes, history: SimilarityHistory, measures: tuple[str, str], layer: str, representation: str
) -> None:
    names = (f"{measures[0]}/{representation}/{layer}", measures[1])
    x, y = (np.array([m.values.get(name, math.nan) for m in history.measurements]) for name in names)
    epochs = [measurement.epoch for measurement in history.measurements]
    points = axes.scatter(x, y, c=epochs, cmap="viridis", s=20, edgecolors="white", linewidths=0.4, zorder=3)
    points.set_clim(min(epochs), max(max(epochs), min(epochs) + 1))
    result = history.correlation(*measures, layer=layer, representation=representation)
    text = f"r = {result.value:.2f} [{result.low:.2f}, {result.high:.2f}]"
    finite = np.isfinite(x) & np.isfinite(y)
    if math.isfinite(result.slope):
        ends = np.array([x[finite].min(), x[finite].max()])
        fitted = y[finite].mean() + result.slope * (ends - x[finite].mean())
        axes.plot(ends, fitted, color=_OUTPUT_COLORS[0], linewidth=1.3, zorder=2)
    else:
        text = "r is undefined"
    _style_axes(axes)
    axes.locator_params(nbins=4)
    axes.set_title(f"{_label(layer, 26)}\n{text}", fontsize=8.5, color=_DARK, loc="left", parse_math=False)


def _add_epoch_scale(figure: Figure, axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(axes.collections[0], cax=axes.inset_axes((1.06, 0.0, 0.05, 1.0)))
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    bar.ax.tick_params(labelsize=8, labelcolor=_DARK, length=0)
    bar.set_label("epoch", fontsize=9, color=_GREY)
    bar.outline.set_visible(False)


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'lightning-sim[plot]'") from error
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    return figure


def _draw_matrix(axes: Axes, matrix: SimilarityMatrix, title: str, side: float) -> None:
    """The heatmap; from the side of a cell in inches follows how many names and numbers can be read."""
    from matplotlib import colormaps

    values = np.ma.masked_invalid(matrix.values)
    low, high = 0.0, 1.0
    if matrix.measure not in _UNIT_RANGE and values.count():
        low, high = float(values.min()), float(values.max())
    colors = colormaps[_MATRIX_COLORS].with_extremes(bad=_MISSING)
    axes.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="equal", interpolation="nearest")
    plain: dict[str, Any] = {"fontsize": min(8.5, max(6.0, 40 * side)), "color": _DARK, "parse_math": False}
    stride = max(1, math.ceil(0.12 / side))
    shown_columns, shown_rows = (range(0, count, stride) for count in values.shape[::-1])
    axes.set_xticks(shown_columns, [_label(matrix.columns[index]) for index in shown_columns], rotation=90, **plain)
    axes.set_yticks(shown_rows, [_label(matrix.rows[index]) for index in shown_rows], **plain)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layers of the reference", fontsize=9, color=_GREY)
    axes.set_ylabel("layers of the network", fontsize=9, color=_GREY)
    _set_title(axes, title)
    if max(values.shape) <= _MOST_CELLS_WITH_TEXT and side > 0.3:
        for (row, column), value in np.ndenumerate(matrix.values):
            dark_cell = value > low + 0.55 * (high - low)
            text = f"{value:.2f}" if np.isfinite(value) else "n/a"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark_cell else _DARK)


def _draw_lines(axes: Axes, lines: Lines, colors: Sequence[Any], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for (name, line), color in zip(lines.items(), colors, strict=False):
        repeated = len(set(line.epochs.tolist())) < len(line)  # several within an epoch, or unknown epochs
        marker = "o" if len(line) <= 30 else None
        style: dict[str, Any] = {"color": color, "linewidth": 1.7, "marker": marker, "markersize": 3.2}
        axes.plot(line.steps if repeated else line.epochs, line.values, label=_label(name), **style)
        axes.set_xlabel("step" if repeated else "epoch", fontsize=9, color=_GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    _style_axes(axes)
    _set_title(axes, title)


def _style_axes(axes: Axes) -> None:
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(labelsize=8.5, labelcolor=_DARK, color=_GREY)


def _draw_outputs(axes: Axes, outputs: Lines, title: str = "") -> None:
    _draw_lines(axes, outputs, list(itertools.islice(itertools.cycle(_OUTPUT_COLORS), len(outputs))), title)


def _explain_layers(figure: Figure, panels: Iterable[tuple[Axes, Lines]]) -> None:
    """A legend of the layers, at the last of the panels that show the same ones."""
    for layers, axes in {tuple(lines): axes for axes, lines in panels}.items():
        if len(layers) > _MOST_LEGEND_ENTRIES:
            _add_layer_scale(figure, axes, layers)
        elif layers:
            _add_legend(axes)


def _add_layer_scale(figure: Figure, axes: Axes, layers: Sequence[str]) -> None:
    """The colours of all layers with the names of some."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colors = ListedColormap(_depth_colors(len(layers)))
    scale = ScalarMappable(BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers)), colors)
    shown = np.unique(np.linspace(0, len(layers) - 1, 9).round().astype(int))
    bar = figure.colorbar(scale, cax=axes.inset_axes((1.02, 0.0, 0.03, 1.0)), ticks=shown)
    names = [_label(layers[index]) for index in shown]
    bar.ax.set_yticklabels(names, fontsize=8, color=_DARK, parse_math=False)
    bar.minorticks_off()
    bar.ax.invert_yaxis()  # like a legend: the first layer on top
    bar.ax.tick_params(length=0, pad=4)
    bar.outline.set_visible(False)


def _add_legend(axes: Axes) -> None:
    style: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": _DARK, "handlelength": 1.4}
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **style)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _add_color_bar(figure: Figure, axes: Axes) -> None:
    bar = figure.colorbar(axes.images[0], cax=axes.inset_axes((1.03, 0.05, 0.035, 0.9)))
    bar.ax.tick_params(labelsize=8, labelcolor=_DARK, length=0)
    bar.outline.set_visible(False)


def _set_title(axes: Axes, title: str) -> None:
    axes.set_title(_label(title, 60), fontsize=10.5, color=_DARK, loc="left", parse_math=False)


def _title_figure(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(_label(title, 80), fontsize=12, color=_DARK, parse_math=False)


def _depth_colors(count: int) -> list[Any]:
    """From dark (first layer) to light (last), without the yellow that vanishes on white."""
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0.0, 0.9, max(count, 1))))


def _layer_lines(history: SimilarityHistory, measure: str, representation: str) -> dict[str, Trajectory]:
    start = f"{measure}/{representation}/"
    measured = {name for name in history.names if name.startswith(start)}
    return {
        layer: history.trajectory(measure, layer=layer, representation=representation)
        for layer in history.layers
        if start + layer in measured
    }


def _output_lines(history: SimilarityHistory) -> dict[str, Trajectory]:
    others = ("seconds", *FISHER_MEASURES)
    return {name: history.trajectory(name) for name in history.names if "/" not in name and name not in others}


def _last_matrix(
    history: SimilarityHistory, measure: str | None = None, representation: str | None = None
) -> tuple[SimilarityMatrix | None, int]:
    """The last matrix of a kind, and of which epoch it is."""
    for measurement in reversed(history.measurements):
        for matrix in measurement.matrices:
            if measure in (None, matrix.measure) and representation in (None, matrix.representation):
                return matrix, measurement.epoch
    return None, -1


def _label(name: str, most: int = 30) -> str:
    """One line of printable text, shortened in the middle; a leading underscore would hide it in a legend."""
    text = shortened(name, most)
    return f" {text}" if text.startswith("_") else text
