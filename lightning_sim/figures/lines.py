"""Numbers over the course of training, a line each, in panels side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_sim.figures.labels import without_prefix
from lightning_sim.figures.moments import mark_epochs, positions
from lightning_sim.figures.style import (
    DARK,
    OUTPUT_COLORS,
    axis_label,
    depth_colors,
    label,
    new_figure,
    set_title,
    style_axes,
    title_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Line", "Lines", "Panel", "draw_lines", "explain_lines", "lines_figure", "panel_grid"]

_MOST_LEGEND_ENTRIES = 14


class Line(Protocol):
    """What a line shows: a value at each of some measurements, and its band."""

    @property
    def epochs(self) -> NDArray[np.int64]:
        """(measurements,)."""

    @property
    def steps(self) -> NDArray[np.int64]:
        """(measurements,)."""

    @property
    def values(self) -> NDArray[np.float64]:
        """(measurements,)."""

    @property
    def standard_errors(self) -> NDArray[np.float64]:
        """(measurements,), NaN where there is no band."""


Lines = Mapping[str, Line]


@dataclass(frozen=True)
class Panel:
    """One chart.

    Args:
        title: above it.
        lines: by their names.
        by_depth: whether the lines are layers, coloured from the first to the last.
    """

    title: str
    lines: Lines
    by_depth: bool = False


def lines_figure(panel: Panel) -> Figure:
    """One panel by itself."""
    figure = new_figure(6.0, 3.4)
    axes = figure.subplots()
    draw_lines(axes, panel)
    if len(panel.lines) > 1:
        explain_lines(figure, [(axes, panel)])
    return figure


def panel_grid(title: str, panels: Sequence[Panel], extra: int = 0) -> tuple[Figure, list[Axes]]:
    """Panels in a grid that is about as wide as it is high, and axes left over for `extra` more."""
    count = len(panels) + extra
    columns = max(math.ceil(math.sqrt(count)), 1)
    rows = max(math.ceil(count / columns), 1)
    figure = new_figure(5.0 * columns + 1.0, 3.8 * rows)
    title_figure(figure, title)
    grid = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in grid[count:]:
        axes.remove()
    for axes, panel in zip(grid, panels, strict=False):
        draw_lines(axes, panel)
    explain_lines(figure, zip(grid, panels, strict=False))
    return figure, grid[len(panels) : count]


def draw_lines(axes: Axes, panel: Panel) -> None:
    """The lines over start and epochs, or over steps where an epoch has several measurements or is not known.

    Bands are 1.96 standard errors wide on both sides.
    """
    from matplotlib.ticker import MaxNLocator

    colors = depth_colors(len(panel.lines)) if panel.by_depth else itertools.cycle(OUTPUT_COLORS)
    at = [positions(line.epochs, line.steps) for line in panel.lines.values()]
    if repeated := any(len(np.unique(epochs)) < len(epochs) for epochs in at):
        at = [line.steps for line in panel.lines.values()]
    for name, x, line, color in zip(_labels(panel), at, panel.lines.values(), colors, strict=False):
        style: dict[str, Any] = {"color": color, "linewidth": 1.7, "markersize": 3.2}
        style["marker"] = "o" if len(line.values) <= 30 else None
        axes.plot(x, line.values, label=name, **style)
        if np.isfinite(line.standard_errors).any():
            band = line.values + np.multiply.outer([-1.96, 1.96], line.standard_errors)
            axes.fill_between(x, *band, color=color, alpha=0.18, linewidth=0.8)  # of one point it is the edge
    if repeated:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axis_label(axes.set_xlabel, "step" if repeated else mark_epochs(axes.xaxis, np.concatenate([[], *at])))
    style_axes(axes)
    set_title(axes, panel.title)


def _labels(panel: Panel) -> list[str]:
    return [label(name) for name in (without_prefix(list(panel.lines)) if panel.by_depth else panel.lines)]


def explain_lines(figure: Figure, panels: Iterable[tuple[Axes, Panel]]) -> None:
    """A legend of the lines, at the last of the panels that show the same ones."""
    for axes, panel in {tuple(panel.lines): (axes, panel) for axes, panel in panels}.values():
        if panel.by_depth and len(panel.lines) > _MOST_LEGEND_ENTRIES:
            _add_layer_scale(figure, axes, _labels(panel))
        elif panel.lines:
            _add_legend(axes)


def _add_layer_scale(figure: Figure, axes: Axes, layers: Sequence[str]) -> None:
    """The colours of all layers with the names of some."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colors = ListedColormap(list(depth_colors(len(layers))))
    scale = ScalarMappable(BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers)), colors)
    shown = np.unique(np.linspace(0, len(layers) - 1, 9).round().astype(int))
    bar = figure.colorbar(scale, cax=axes.inset_axes((1.02, 0.0, 0.03, 1.0)), ticks=shown)
    bar.ax.set_yticklabels([layers[index] for index in shown], fontsize=8, color=DARK, parse_math=False)
    bar.minorticks_off()
    bar.ax.invert_yaxis()  # like a legend: the first layer on top
    bar.ax.tick_params(length=0, pad=4)
    bar.outline.set_visible(False)


def _add_legend(axes: Axes) -> None:
    style: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": DARK, "handlelength": 1.4}
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **style)
    for text in legend.get_texts():
        text.set_parse_math(False)
