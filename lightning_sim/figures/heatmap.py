"""A layer x layer matrix as a heatmap."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_sim.figures.labels import without_prefix
from lightning_sim.figures.style import DARK, GREY, MISSING, axis_label, label, new_figure, set_title

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Heatmap", "draw_heatmap", "heatmap_figure", "heatmap_pixels"]

_COLORS = "YlGnBu"
_MOST_CELLS_WITH_TEXT = 12
_MOST_ON_DASHBOARDS = 6  # which show pictures so small that numbers of more cells cannot be read
_MOST_NAMES = 18  # on one axis
# Lines in the cell at 0, 0.
_HATCH = np.array([[[-0.5, 0], [0, -0.5]], [[-0.5, 0.5], [0.5, -0.5]], [[0, 0.5], [0.5, 0]]])


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
        hatched: shape (rows, columns), cells that chance explains; None where that is not known.
    """

    values: NDArray[np.float32]
    rows: Sequence[str]
    columns: Sequence[str]
    title: str = ""
    low: float | None = None
    high: float | None = None
    axis_labels: tuple[str, str] = ("layers of the network", "layers of the reference")
    hatched: NDArray[np.bool_] | None = None


def heatmap_figure(heatmap: Heatmap) -> Figure:
    """One matrix, with the values in the cells when there are at most 12 x 12."""
    width, height, side = _size(heatmap)
    figure = new_figure(width, height)
    draw_heatmap(figure.subplots(), heatmap, side)
    return figure


_DRAWING = threading.Lock()  # what is kept serves all threads


def heatmap_pixels(heatmap: Heatmap) -> NDArray[np.uint8]:
    """The same for a dashboard, shape (height, width, 3), with values in the cells when there are at most 6 x 6.

    What stays for the next matrix of these layers is drawn once.
    """
    names = tuple(heatmap.rows), tuple(heatmap.columns)
    has_chance = heatmap.hatched is not None
    axes, drawn, background = _kept(*names, *_ends(heatmap), heatmap.axis_labels, _size(heatmap), has_chance)
    canvas: Any = axes.figure.canvas
    with _DRAWING:
        _show(drawn, heatmap)
        canvas.restore_region(background)
        for artist in drawn:
            axes.draw_artist(artist)
        return np.array(canvas.buffer_rgba())[..., :3]


@functools.lru_cache(maxsize=8)
def _kept(
    rows: Sequence[str],
    columns: Sequence[str],
    low: float,
    high: float,
    axis_labels: tuple[str, str],
    size: tuple[float, float, float],
    has_chance: bool,
) -> tuple[Axes, list[Any], Any]:
    """Axes with a laid-out heatmap, the parts of it that change, and the picture without them."""
    values = np.full((len(rows), len(columns)), np.nan, np.float32)
    blank = Heatmap(values, rows, columns, "Xg", low, high, axis_labels, np.isfinite(values) if has_chance else None)
    figure = new_figure(*size[:2])
    axes = figure.subplots()
    drawn = draw_heatmap(axes, blank, size[2], _MOST_ON_DASHBOARDS)
    for artist in drawn:
        artist.set_animated(True)  # left out, until it is drawn by itself
    figure.canvas.draw()
    return axes, drawn, figure.canvas.copy_from_bbox(figure.bbox)  # type: ignore[attr-defined]


def draw_heatmap(
    axes: Axes, heatmap: Heatmap, side: float, most_with_text: int = _MOST_CELLS_WITH_TEXT
) -> list[Artist]:
    """The matrix and its colour scale; from the side of a cell in inches follows how much text can be read.

    Returns image, hatches, title and texts of the cells, which alone are others for another matrix of the same layers.
    """
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    low, high = _ends(heatmap)
    colors = colormaps[_COLORS].with_extremes(bad=MISSING)
    image = axes.imshow(heatmap.values, cmap=colors, vmin=low, vmax=high, aspect="equal", interpolation="nearest")
    for axis, names, kind, turned in (
        (axes.yaxis, heatmap.rows, heatmap.axis_labels[0], 0),
        (axes.xaxis, heatmap.columns, heatmap.axis_labels[1], 90),
    ):
        short = without_prefix(names)
        stride = max(math.ceil(0.12 / side), math.ceil(len(names) / _MOST_NAMES))
        shown = [label(name) for name in short[::stride]]
        size = min(8.5, max(6.0, 40 * side * stride))
        axis.set_ticks(
            range(0, len(names), stride), shown, fontsize=size, color=DARK, parse_math=False, rotation=turned
        )
        prefix = names[0].removesuffix(short[0])
        axis_label(axis.set_label_text, f"{kind}, {prefix}*" if prefix else kind)
    hatches = axes.add_collection(LineCollection([], colors=DARK, linewidths=0.7, alpha=0.45), autolim=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    texts = []
    if max(heatmap.values.shape) <= most_with_text and side > 0.3:
        texts = [axes.text(j, i, "", ha="center", va="center", fontsize=8) for i, j in np.ndindex(heatmap.values.shape)]
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.03, 0.05, 0.035, 0.9)))
    bar.ax.tick_params(labelsize=8, labelcolor=DARK, length=0)
    bar.outline.set_visible(False)
    if heatmap.hatched is not None:
        bar.set_label("hatched: chance explains it", fontsize=7.5, color=GREY)
    drawn = [image, hatches, set_title(axes, heatmap.title), *texts]
    _show(drawn, heatmap)
    return drawn


def _show(drawn: Sequence[Any], heatmap: Heatmap) -> None:
    """Put values, hatches and title of a heatmap into what was drawn for another one."""
    image, hatches, title, *texts = drawn
    image.set_data(np.ma.masked_invalid(heatmap.values))
    cells = np.argwhere(heatmap.hatched)[:, None, None, ::-1] if heatmap.hatched is not None else np.empty((0, 1, 1, 2))
    hatches.set_segments((cells + _HATCH).reshape(-1, 2, 2))
    title.set_text(label(heatmap.title, 60))
    low, high = image.get_clim()
    for text, value in zip(texts, heatmap.values.flat, strict=False):
        text.set_text(f"{value:.2f}" if np.isfinite(value) else "n/a")
        text.set_color("white" if value > low + 0.55 * (high - low) else DARK)


def _ends(heatmap: Heatmap) -> tuple[float, float]:
    """Of the colours."""
    if heatmap.low is not None and heatmap.high is not None:
        return heatmap.low, heatmap.high
    finite = heatmap.values[np.isfinite(heatmap.values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _size(heatmap: Heatmap) -> tuple[float, float, float]:
    """Width, height and side of a cell in inches."""
    (rows, columns), most = heatmap.values.shape, max(heatmap.values.shape)
    side = 0.5 if most <= _MOST_CELLS_WITH_TEXT else max(0.15, 0.26 - 0.002 * most)
    shown = (*without_prefix(heatmap.rows), *without_prefix(heatmap.columns))
    names = 0.075 * max((len(label(name)) for name in shown), default=0)
    width = max(1.4 + names + side * columns, 3.6, 2 + 0.06 * len(heatmap.title))
    return width, max(0.9 + names + side * rows, 2.8), side
