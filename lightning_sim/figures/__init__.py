"""Pictures of plain data: heatmaps, lines and scatter plots, as matplotlib Figure objects. Needs the extra ``plot``."""

from lightning_sim.figures.heatmap import Heatmap, draw_heatmap, heatmap_figure, heatmap_pixels
from lightning_sim.figures.lines import Panel, lines_figure, panel_grid
from lightning_sim.figures.scatter import Scatter, scatter_figure

__all__ = [
    "Heatmap",
    "Panel",
    "Scatter",
    "draw_heatmap",
    "heatmap_figure",
    "heatmap_pixels",
    "lines_figure",
    "panel_grid",
    "scatter_figure",
]
