"""Pictures of whole runs: similarity against divergence of the outputs, and several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_sim.figures import Panel, Scatter, draw_heatmap, scatter_figure
from lightning_sim.figures.labels import without_prefix
from lightning_sim.figures.lines import draw_lines, explain_lines
from lightning_sim.figures.moments import moment, placed
from lightning_sim.figures.style import (
    FAINT,
    GREY,
    MARK,
    axis_label,
    depth_colors,
    label,
    new_figure,
    set_title,
    style_axes,
)
from lightning_sim.record import Key, SimilarityHistory
from lightning_sim.record.correlations import numbers_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SIMILAR", "comparison_figure", "correlation_figure", "interchange_figure"]

SIMILAR = 0.8  # from here on a similarity, or a stitching, is called high
_MOST_SCATTER_PANELS = 12


def correlation_figure(
    history: SimilarityHistory, measure: str = "cka", output: str = "jsd", representation: str = "features"
) -> Figure:
    """A measure of layers against one of outputs, a panel per layer: points coloured by epoch, the best-fit line.

    Of more than 12 layers those are shown that lie evenly spaced in depth, the first and the last among them. Above
    each panel stands Pearson's correlation with its 95% interval.

    Raises:
        ValueError: If no layer was measured so, or the outputs were not.
    """
    held = set(history.keys)
    layers = [layer for layer in history.layers if Key(measure, representation, layer) in held]
    if not layers or Key(output) not in held:
        known = ", ".join(history.measures) or "nothing"
        raise ValueError(f"no pairs of {measure}/{representation} and {output} in this history; it holds {known}")
    count = min(len(layers), _MOST_SCATTER_PANELS)
    shown = [layers[index] for index in np.linspace(0, len(layers) - 1, count).round().astype(int)]
    panels = []
    for name, layer in zip(without_prefix(shown), shown, strict=True):
        keys = Key(measure, representation, layer), Key(output)
        x, y = (numbers_of(history.measurements, key) for key in keys)
        found = history.correlation(measure, output, layer=layer, representation=representation)
        text = f"r = {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
        panels.append(Scatter(name, text if math.isfinite(found.slope) else "r is undefined", x, y, found.slope))
    few = "" if count == len(layers) else f", {count} of {len(layers)} layers"
    title = f"{output} against {measure} of {representation}{few}"
    return scatter_figure(title, panels, [at for at, _ in placed(history.measurements)], (measure, output))


def interchange_figure(history: SimilarityHistory, epoch: int | None = None, similarity: str = "cka") -> Figure:
    """A similarity of every layer against its stitching, and against that of an untrained front, at one measurement.

    A layer to the right and below, on marked ground and with its name, is similar (at least 0.8) and cannot take the
    other's place all the same (less than 0.8). One whose grey control is as high would do so untrained.

    Args:
        history: of a run with both measures.
        epoch: The last measurement of this epoch; the very last one by default.
        similarity: The measure on the x axis, of features.

    Raises:
        ValueError: If no layer has both.
    """
    found = reversed(placed(history.measurements))
    at, last = next(((at, m) for at, m in found if epoch in (None, m.epoch)), (0, None))
    values = last.by_key if last else {}
    measures = (similarity, "stitching", "stitching_untrained")
    keys = {layer: [Key(measure, "features", layer) for measure in measures] for layer in history.layers}
    shown = {layer: of for layer, of in keys.items() if of[0] in values and of[1] in values}
    if not shown:
        known = ", ".join(history.measures) or "nothing"
        raise ValueError(f"no layer has both {similarity} and stitching at this measurement; the history holds {known}")
    from matplotlib.patches import Rectangle

    figure = new_figure(5.6, 4.2)
    axes = figure.subplots()
    names = without_prefix([*shown])
    for name, of, color in zip(names, shown.values(), depth_colors(len(shown)), strict=True):
        x, y, control = (values.get(key, math.nan) for key in of)
        axes.plot([x, x], [y, control], color=FAINT, linewidth=1.2, zorder=1)
        axes.scatter([x], [control], color=GREY, marker="_", s=40, zorder=2)
        axes.scatter([x], [y], color=color, s=34, edgecolors="white", linewidths=0.5, zorder=3, label=label(name))
        if x >= SIMILAR > y:
            beside: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 8}
            axes.annotate(label(name), (x, y), (-6, -3), **beside, parse_math=False)
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), 1.03)
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(1.03, axes.get_ylim()[1]))
    axes.add_patch(Rectangle((SIMILAR, axes.get_ylim()[0]), 1, SIMILAR - axes.get_ylim()[0], color=MARK, zorder=0))
    style_axes(axes)
    set_title(axes, f"{similarity} and stitching, {moment(at)}: interchangeable?")
    axis_label(axes.set_xlabel, similarity)
    axis_label(axes.set_ylabel, "stitching, and of an untrained front (grey)")
    lines = {layer: history.trajectory_of(of[1]) for layer, of in shown.items()}
    explain_lines(figure, [(axes, Panel("", lines, by_depth=True))])
    return figure


def comparison_figure(histories: Mapping[str, SimilarityHistory], measure: str = "cka") -> Figure:
    """Several runs side by side: trajectories of all layers, of the outputs, and the final matrices below.

    Args:
        histories: The runs by the names that are to stand above them.
        measure: What to show of the layers' features.

    Raises:
        ValueError: If there is no run.
    """
    if not histories:
        raise ValueError("`histories` must hold at least one run, got none")
    panels = [{panel.title: panel for panel in history.panels()} for history in histories.values()]
    kind = Key(measure, "features")
    titles = (kind.title, "outputs")
    figure = new_figure(4.3 * len(histories) + 1.4, 2.9 + 2.1 + 3.7 + 0.5)
    grid = figure.subplots(3, len(histories), squeeze=False, height_ratios=[2.9, 2.1, 3.7])
    for column, (name, history) in enumerate(histories.items()):
        for row, title in enumerate(titles):
            axes, found = grid[row, column], panels[column].get(title, Panel(title, {}))
            axes.sharey(grid[row, 0])
            draw_lines(axes, Panel(name if row == 0 else "", found.lines, found.by_depth))
            axis_label(axes.set_ylabel, title if column == 0 else "")
        matrices = ((at, matrix) for at, m in reversed(placed(history.measurements)) for matrix in m.matrices)
        last = next(((at, matrix) for at, matrix in matrices if matrix.key == kind), None)
        if last is None:
            grid[2, column].set_axis_off()
        else:
            heatmap = last[1].heatmap(f"{kind.title}, {moment(last[0])}", history.scale(measure))
            draw_heatmap(grid[2, column], heatmap, 2.4 / max(heatmap.values.shape))
    for row, title in enumerate(titles):
        held = [found.get(title, Panel(title, {})) for found in panels]
        explain_lines(figure, zip(grid[row], held, strict=True))
    return figure
