"""Figures for any other logger that has a public way to take them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_sim.loggers.adapter import LoggerAdapter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CometAdapter", "ImageAdapter", "MlflowAdapter", "SilentAdapter"]


class SilentAdapter(LoggerAdapter):
    """A CSVLogger, which deletes an earlier file when its experiment is touched, and Lightning's dummy."""

    takes_figures = False

    def takes(self, logger: Any) -> bool:
        """The dummy has every method that it is asked for."""
        from lightning.pytorch.loggers import CSVLogger
        from lightning.pytorch.loggers.logger import DummyLogger

        return isinstance(logger, (CSVLogger, DummyLogger))


class MlflowAdapter(LoggerAdapter):
    """Loggers with the ``log_figure`` of MLflow's client."""

    def takes(self, logger: Any) -> bool:
        """By the name of an argument."""
        return _log_figure_has(logger, "artifact_file")

    def write_figures(self, logger: Any, figures: Mapping[str, Figure], step: int) -> None:
        """Write every figure to a file of its own."""
        for name, figure in figures.items():
            # It is a path: only harmless characters, and no part that starts with a dot.
            place = re.sub(r"[^\w./ -]|(?<![^/])\.+", "_", name).strip("/")
            logger.experiment.log_figure(logger.run_id, figure, f"{place}/step_{step:08d}.png")


class CometAdapter(LoggerAdapter):
    """Loggers with the ``log_figure`` of a Comet experiment."""

    def takes(self, logger: Any) -> bool:
        """By the name of an argument."""
        return _log_figure_has(logger, "figure_name")

    def write_figures(self, logger: Any, figures: Mapping[str, Figure], step: int) -> None:
        """Log all figures."""
        for name, figure in figures.items():
            logger.experiment.log_figure(figure_name=name, figure=figure, step=step)


class ImageAdapter(LoggerAdapter):
    """Any other logger with a ``log_image`` of its own."""

    def takes(self, logger: Any) -> bool:
        """Those that have one."""
        return callable(getattr(logger, "log_image", None))

    def write_figures(self, logger: Any, figures: Mapping[str, Figure], step: int) -> None:
        """Log the pixels of all figures."""
        for name, figure in figures.items():
            logger.log_image(key=name, images=[_pixels(figure)], step=step)


def _log_figure_has(logger: Any, argument: str) -> bool:
    log_figure = getattr(logger.experiment, "log_figure", None)
    return callable(log_figure) and argument in inspect.signature(log_figure).parameters


def _pixels(figure: Figure) -> np.ndarray[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: np.ndarray[Any, Any] = np.array(canvas.buffer_rgba())
    return pixels[..., :3]
