"""One number against another over the course of training, a panel each, with the best-fit line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_sim.figures.moments import mark_epochs
from lightning_sim.figures.style import (
    DARK,
    GREY,
    OUTPUT_COLORS,
    axis_label,
    label,
    new_figure,
    style_axes,
    title_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Scatter", "scatter_figure"]


@dataclass(frozen=True)
class Scatter:
    """One panel.

    Args:
        title: above it.
        text: below the title.
        x: shape (measurements,).
        y: shape (measurements,).
        slope: of the best-fit line through the finite pairs; NaN where there is none.
    """

    title: str
    text: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    slope: float


def scatter_figure(
    title: str, panels: Sequence[Scatter], epochs: Sequence[int], axis_labels: tuple[str, str]
) -> Figure:
    """Panels side by side, their points coloured by epoch.

    Args:
        title: above all.
        panels: at least one.
        epochs: of the measurements, as :func:`lightning_sim.figures.moments.positions` gives them.
        axis_labels: what x and y are.
    """
    count = len(panels)
    columns = count if count <= 4 else math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure = new_figure(2.5 * columns + 1.1, 2.4 * rows + 0.6)
    title_figure(figure, title)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in list(grid.ravel())[count:]:
        axes.remove()
    for axes, panel in zip(grid.ravel(), panels, strict=False):
        _draw(axes, panel, epochs)
        axis_label(axes.set_xlabel, axis_labels[0])
    for axes in grid[:, 0]:
        axis_label(axes.set_ylabel, axis_labels[1])
    _add_epoch_scale(figure, grid[0, -1], epochs)
    return figure


def _draw(axes: Axes, panel: Scatter, epochs: Sequence[int]) -> None:
    points = axes.scatter(
        panel.x, panel.y, c=epochs, cmap="viridis", s=20, edgecolors="white", linewidths=0.4, zorder=3
    )
    points.set_clim(min(epochs), max(max(epochs), min(epochs) + 1))
    finite = np.isfinite(panel.x) & np.isfinite(panel.y)
    if math.isfinite(panel.slope):
        ends = np.array([panel.x[finite].min(), panel.x[finite].max()])
        fitted = panel.y[finite].mean() + panel.slope * (ends - panel.x[finite].mean())
        axes.plot(ends, fitted, color=OUTPUT_COLORS[0], linewidth=1.3, zorder=2)
    style_axes(axes)
    axes.locator_params(nbins=4)
    axes.set_title(f"{label(panel.title, 26)}\n{panel.text}", fontsize=8.5, color=DARK, loc="left", parse_math=False)


def _add_epoch_scale(figure: Figure, axes: Axes, epochs: Sequence[int]) -> None:
    bar = figure.colorbar(axes.collections[0], cax=axes.inset_axes((1.06, 0.0, 0.05, 1.0)))
    bar.ax.tick_params(labelsize=8, labelcolor=DARK, length=0)
    bar.set_label(mark_epochs(bar.ax.yaxis, np.array(epochs)), fontsize=9, color=GREY)
    bar.outline.set_visible(False)
