"""Figures for any other logger that has a public way to take them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from lightning_sim.loggers.adapter import LoggerAdapter, Pixels

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
    """Loggers with the ``log_image`` of MLflow's client."""

    def takes(self, logger: Any) -> bool:
        """By the name of an argument."""
        return _log_image_has(logger.experiment, "artifact_file")

    def write_figures(self, logger: Any, figures: Mapping[str, Pixels], step: int) -> None:
        """Write every figure to a file of its own."""
        for name, pixels in figures.items():
            # It is a path: only harmless characters, and no part that starts with a dot.
            place = re.sub(r"[^\w./ -]|(?<![^/])\.+", "_", name).strip("/")
            logger.experiment.log_image(logger.run_id, pixels, f"{place}/step_{step:08d}.png")


class CometAdapter(LoggerAdapter):
    """Loggers with the ``log_image`` of a Comet experiment."""

    def takes(self, logger: Any) -> bool:
        """By the name of an argument."""
        return _log_image_has(logger.experiment, "image_data")

    def write_figures(self, logger: Any, figures: Mapping[str, Pixels], step: int) -> None:
        """Log all figures."""
        for name, pixels in figures.items():
            logger.experiment.log_image(image_data=pixels, name=name, step=step)


class ImageAdapter(LoggerAdapter):
    """Any other logger with a ``log_image`` of its own."""

    def takes(self, logger: Any) -> bool:
        """Those that have one."""
        return callable(getattr(logger, "log_image", None))

    def write_figures(self, logger: Any, figures: Mapping[str, Pixels], step: int) -> None:
        """Log the pixels of all figures."""
        for name, pixels in figures.items():
            logger.log_image(key=name, images=[pixels], step=step)


def _log_image_has(experiment: Any, argument: str) -> bool:
    log_image = getattr(experiment, "log_image", None)
    return callable(log_image) and argument in inspect.signature(log_image).parameters
