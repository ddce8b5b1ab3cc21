"""Figures for any other logger that has a public way to take them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_sim.loggers.adapter import LoggerAdapter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    FigureWriter = Callable[[Any, Mapping[str, Figure], int], None]

__all__ = ["GenericAdapter", "SilentAdapter"]


class SilentAdapter(LoggerAdapter):
    """A CSVLogger, which deletes an earlier file when its experiment is touched, and Lightning's dummy."""

    def takes(self, logger: Any) -> bool:
        """The dummy has every method that it is asked for."""
        from lightning.pytorch.loggers import CSVLogger
        from lightning.pytorch.loggers.logger import DummyLogger

        return isinstance(logger, (CSVLogger, DummyLogger))


class GenericAdapter(LoggerAdapter):
    """Any other logger: figures by MLflow's or Comet's ``log_figure``, or its own ``log_image``."""

    takes_figures = True

    def takes(self, logger: Any) -> bool:
        """Those that have one of these."""
        return _figure_writer(logger) is not None

    def write_figures(self, logger: Any, figures: Mapping[str, Figure], step: int) -> None:
        """Log all figures."""
        writer = _figure_writer(logger)
        if writer is not None:
            writer(logger, figures, step)


def _figure_writer(logger: Any) -> FigureWriter | None:
    log_figure = getattr(logger.experiment, "log_figure", None)
    if callable(log_figure):
        parameters = inspect.signature(log_figure).parameters
        if "artifact_file" in parameters:
            return _mlflow
        if "figure_name" in parameters:
            return _comet
    return _log_image if callable(getattr(logger, "log_image", None)) else None


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
