"""What loggers get beside the scalars that Lightning brings them: others, figures, a layout, summaries, a table.

A logger that cannot take something is left alone; one that raises is warned about once, by name, and never
ends the training. All functions do nothing on ranks other than zero.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_sim.loggers.adapter import LoggerAdapter, Pixels
from lightning_sim.loggers.generic import CometAdapter, ImageAdapter, MlflowAdapter, SilentAdapter
from lightning_sim.loggers.tensorboard import TensorBoardAdapter
from lightning_sim.loggers.wandb import WandbAdapter
from lightning_sim.record import Key, Measurement, SimilarityHistory

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure

__all__ = ["finish_loggers", "log_figures", "log_margins", "log_scalars", "log_sketches", "setup_loggers"]

# The first that takes a logger is its own.
_ADAPTERS: tuple[LoggerAdapter, ...] = (
    SilentAdapter(),
    TensorBoardAdapter(),
    WandbAdapter(),
    MlflowAdapter(),
    CometAdapter(),
    ImageAdapter(),
)
_warned_about: weakref.WeakSet[Any] = weakref.WeakSet()


def setup_loggers(
    loggers: Iterable[Logger], keys: Iterable[Key], history: SimilarityHistory, monitor: str = "similarity"
) -> None:
    """Prepare the loggers' pages for the scalars to come; again whenever there are new ones.

    TensorBoard gets a custom-scalars layout, W&B summaries (last, min, max); both keep the metadata, as a
    text and in the config, where `read_history` finds it. TensorBoard's hyperparameters are untouched.

    Args:
        loggers: ``trainer.loggers``.
        keys: of what will be logged.
        history: whose metadata and scales are used.
        monitor: first part of the logged names.
    """
    keys = list(keys)
    for logger, adapter in _adapted(loggers):
        with _going_on(logger):
            adapter.set_up(logger, keys, history, monitor)


def log_scalars(loggers: Iterable[Logger], scalars: Mapping[str, float], step: int) -> None:
    """Give scalars to the loggers where Lightning does not."""
    from lightning.pytorch.utilities import rank_zero_only

    for logger in loggers if getattr(rank_zero_only, "rank", 0) == 0 else ():
        with _going_on(logger):
            logger.log_metrics(dict(scalars), step=step)
            logger.save()


def log_margins(loggers: Iterable[Logger], measurement: Measurement, monitor: str = "similarity") -> None:
    """Give the bands of values to the loggers that draw any: TensorBoard gets those of outputs, and nobody the layers'.

    They are scalars to it, two a value, which for all layers nobody would find their way through.
    """
    for logger, adapter in _adapted(loggers):
        with _going_on(logger):
            adapter.write_margins(logger, measurement, monitor)


def log_figures(loggers: Iterable[Logger], figures: Mapping[str, Callable[[], Figure | Pixels]], step: int) -> None:
    """Give the pixels of figures to those loggers that take any; without such a logger none is made.

    Args:
        loggers: ``trainer.loggers``.
        figures: how to make each figure, or its pixels, by the name under which it is logged.
        step: the step that the scalars of the same measurement have.
    """
    taking = [(logger, adapter) for logger, adapter in _adapted(loggers) if adapter.takes_figures]
    if not taking:
        return
    made = _make(figures)
    for logger, adapter in taking if made else ():
        with _going_on(logger):
            adapter.write_figures(logger, made, step)


def log_sketches(loggers: Iterable[Logger], path: Path, monitor: str = "similarity") -> None:
    """Give a file of sketches to the loggers that keep files with a run: W&B gets an artifact."""
    for logger, adapter in _adapted(loggers):
        with _going_on(logger):
            adapter.write_sketches(logger, path, monitor)


def finish_loggers(loggers: Iterable[Logger], history: SimilarityHistory, monitor: str = "similarity") -> None:
    """Log the whole history at the end: W&B gets one long table, and the epochs of the lowest values."""
    for logger, adapter in _adapted(loggers):
        with _going_on(logger):
            adapter.finish(logger, history, monitor)


def _adapted(loggers: Iterable[Logger]) -> Iterator[tuple[Logger, LoggerAdapter]]:
    """Every logger that something can be brought to, on rank zero alone."""
    from lightning.pytorch.utilities import rank_zero_only

    for logger in loggers if getattr(rank_zero_only, "rank", 0) == 0 else ():
        with _going_on(logger):
            adapter = next((adapter for adapter in _ADAPTERS if adapter.takes(logger)), None)
            if adapter is not None:
                yield logger, adapter


def _make(figures: Mapping[str, Callable[[], Figure | Pixels]]) -> dict[str, Pixels]:
    made = {}
    for name, make in figures.items():
        try:
            made[name] = _pixels(make())
        except ModuleNotFoundError as error:
            _warn_once(f"No figures are logged: {error}")
            return made
        except Exception as error:
            _warn_once(f"The figure {name!r} could not be made: {type(error).__name__}: {error}")
    return made


def _pixels(made: Figure | Pixels) -> Pixels:
    """Drawn once for all loggers; the figure is cleared."""
    if isinstance(made, np.ndarray):
        return made
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(made)
    canvas.draw()
    pixels = np.array(canvas.buffer_rgba())[..., :3]
    made.clear()
    return pixels


@contextmanager
def _going_on(logger: Logger) -> Iterator[None]:
    """An error of a logger becomes one warning."""
    try:
        yield
    except Exception as error:
        if logger not in _warned_about:
            _warned_about.add(logger)
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"{type(logger).__name__} failed and is not reported again; training goes on: {reason}",
                stacklevel=4,
            )


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
