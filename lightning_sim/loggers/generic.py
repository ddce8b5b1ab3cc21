"""Figures for any other logger that has a public way to take them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    FigureWriter = Callable[[Any, Mapping[str, Figure], int], None]

__all__ = ["figure_writer"]


def figure_writer(logger: Any) -> FigureWriter | None:
    """How `logger` takes figures: by MLflow's or Comet's ``log_figure``, its own ``log_image``, or not."""
    log_figure = getattr(logger.experiment, "log_figure", None)
    if callable(log_figure):
        parameters = inspect.signature(log_figure).parameters
        if "artifact_file" in parameters:
            return _mlflow
        if "figure_name" in parameters:
            return _comet
    if callable(getattr(logger, "log_image", None)):
        return _log_image
    return None


def _mlflow(logger: Any, figures: Mapping[str, Figure], step: int) -> None:
    for name, figure in figures.items():
        # It is a path: only harmless characters, and no part that starts with a dot.
        place = re.sub(r"[^\w./ -]|(?<![^/])\.+", "_", name).strip("/")
        logger.experiment.log_figure(logger.run_id, figure, f"{place}/step_{step:08d}.png")


def _comet(logger: Any, figures: Mapping[str, Figure], step: int) -> None:
    for name, figure in figures.items():
        logger.experiment.log_figure(figure_name=name, figure=figure, step=step)


def _log_image(logger: Any, figures: Mapping[str, Figure], step: int) -> None:
    for name, figure in figures.items():
        logger.log_image(key=name, images=[_pixels(figure)], step=step)


def _pixels(figure: Figure) -> np.ndarray[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: np.ndarray[Any, Any] = np.array(canvas.buffer_rgba())
    return pixels[..., :3]
