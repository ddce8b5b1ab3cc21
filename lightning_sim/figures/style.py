"""What all figures share: colours, axes, titles. Figures are matplotlib Figure objects without any global state.

Names come from networks and files: they are drawn as plain text, never as formulas, and shortened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_sim.figures.labels import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DARK",
    "FAINT",
    "GREY",
    "MARK",
    "MISSING",
    "OUTPUT_COLORS",
    "axis_label",
    "depth_colors",
    "label",
    "new_figure",
    "set_title",
    "style_axes",
    "title_figure",
]

OUTPUT_COLORS = ("#d1495b", "#2e6f95", "#66a182", "#edae49", "#8d5a97")
DARK, GREY, FAINT, MISSING, MARK = "#333333", "#757575", "#e6e6e6", "#cccccc", "#fff3cd"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches.

    Raises:
        ModuleNotFoundError: without matplotlib, naming the extra that has it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'lightning-sim[plot]'") from error
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes) -> None:
    """Horizontal grid lines, and no frame but left and below."""
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=8.5, labelcolor=DARK, color=GREY)


def set_title(axes: Axes, title: str) -> Any:
    """A title on the left."""
    return axes.set_title(label(title, 60), fontsize=10.5, color=DARK, loc="left", parse_math=False)


def title_figure(figure: Figure, title: str) -> None:
    """A title above all panels, unless it is empty."""
    if title:
        figure.suptitle(label(title, 80), fontsize=12, color=DARK, parse_math=False)


def axis_label(set_label: Any, text: str) -> None:
    """Name an axis by its ``set_xlabel`` or ``set_ylabel``."""
    set_label(label(text, 60) if text else "", fontsize=9, color=GREY, parse_math=False)


def depth_colors(count: int) -> Sequence[Any]:
    """From dark (first layer) to light (last), without the yellow that vanishes on white."""
    import numpy as np
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0.0, 0.9, max(count, 1))))


def label(name: str, most: int = 30) -> str:
    """One line of printable text, shortened in the middle; a leading underscore would hide it in a legend."""
    text = shortened(name, most)
    return f" {text}" if text.startswith("_") else text
