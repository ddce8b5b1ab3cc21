"""A layer x layer matrix as a heatmap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_sim.figures.style import DARK, MISSING, axis_label, label, new_figure, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Heatmap", "draw_heatmap", "heatmap_figure"]

_COLORS = "YlGnBu"
_MOST_CELLS_WITH_TEXT = 12


@dataclass(frozen=True)
class Heatmap:
    """A matrix and its names.

    Args:
        values: shape (rows, columns); cells without a finite value are grey.
        rows: their names.
        columns: their names.
        title: above it.
        low: where the colours begin; at the lowest value if None, or `high` is.
        high: where they end.
        axis_labels: what rows and columns are.
    """

    values: NDArray[np.float32]
    rows: Sequence[str]
    columns: Sequence[str]
    title: str = ""
    low: float | None = None
    high: float | None = None
    axis_labels: tuple[str, str] = ("layers of the network", "layers of the reference")


def heatmap_figure(heatmap: Heatmap) -> Figure:
    """One matrix, with the values in the cells when there are at most 12 x 12."""
    (rows, columns), most = heatmap.values.shape, max(heatmap.values.shape)
    few = most <= _MOST_CELLS_WITH_TEXT
    side = 0.5 if few else max(0.15, 0.26 - 0.002 * most)
    letters = max((len(label(name)) for name in (*heatmap.rows, *heatmap.columns)), default=0)
    names = letters * (0.075 if few else 0.055)
    width = max(1.4 + names + side * columns, 3.6, 2 + 0.06 * len(heatmap.title))
    figure = new_figure(width, max(0.9 + names + side * rows, 2.8))
    axes = figure.subplots()
    draw_heatmap(axes, heatmap, side)
    return figure


def draw_heatmap(axes: Axes, heatmap: Heatmap, side: float) -> None:
    """The matrix and its colour scale; from the side of a cell in inches follows how much text can be read."""
    from matplotlib import colormaps

    values, low, high = np.ma.masked_invalid(heatmap.values), heatmap.low, heatmap.high
    if low is None or high is None:
        low, high = (float(values.min()), float(values.max())) if values.count() else (0.0, 1.0)
    colors = colormaps[_COLORS].with_extremes(bad=MISSING)
    image = axes.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="equal", interpolation="nearest")
    plain: dict[str, Any] = {"fontsize": min(8.5, max(6.0, 40 * side)), "color": DARK, "parse_math": False}
    stride = max(1, math.ceil(0.12 / side))
    shown_columns, shown_rows = (range(0, count, stride) for count in values.shape[::-1])
    axes.set_xticks(shown_columns, [label(heatmap.columns[index]) for index in shown_columns], rotation=90, **plain)
    axes.set_yticks(shown_rows, [label(heatmap.rows[index]) for index in shown_rows], **plain)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axis_label(axes.set_ylabel, heatmap.axis_labels[0])
    axis_label(axes.set_xlabel, heatmap.axis_labels[1])
    set_title(axes, heatmap.title)
    if max(values.shape) <= _MOST_CELLS_WITH_TEXT and side > 0.3:
        for (row, column), value in np.ndenumerate(heatmap.values):
            text = f"{value:.2f}" if np.isfinite(value) else "n/a"
            color = "white" if value > low + 0.55 * (high - low) else DARK
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.03, 0.05, 0.035, 0.9)))
    bar.ax.tick_params(labelsize=8, labelcolor=DARK, length=0)
    bar.outline.set_visible(False)
