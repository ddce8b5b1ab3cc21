"""What loggers get beside the scalars, which Lightning brings them: figures, a layout, summaries, a table.

A logger that cannot take something is left alone; one that raises is warned about once, by name, and never
ends the training. All functions do nothing on ranks other than zero.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning_sim.loggers import generic, tensorboard, wandb

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure

    from lightning_sim.history import SimilarityHistory

__all__ = ["finish_loggers", "log_figures", "setup_loggers"]

_warned_about: weakref.WeakSet[Any] = weakref.WeakSet()


def setup_loggers(
    loggers: Iterable[Logger],
    names: Sequence[str],
    metadata: Mapping[str, Any] | None = None,
    monitor: str = "similarity",
) -> None:
    """Prepare the loggers' pages for the scalars to come.

    TensorBoard gets a custom-scalars layout, W&B summaries (last, min, max); both keep the metadata, as a
    text and in the config, where `read_history` finds it. TensorBoard's hyperparameters are untouched.

    Args:
        loggers: ``trainer.loggers``.
        names: What will be logged, without ``<monitor>/``.
        metadata: `SimilarityHistory.metadata`.
        monitor: First part of the logged names.
    """
    for logger in _on_rank_zero(loggers):
        with _going_on(logger):
            if _is_tensorboard(logger):
                tensorboard.set_up(logger, names, metadata or {}, monitor)
            elif _is_wandb(logger):
                wandb.set_up(logger, names, metadata or {}, monitor)


def log_figures(loggers: Iterable[Logger], figures: Mapping[str, Callable[[], Figure]], step: int) -> None:
    """Give figures to those loggers that take any; without such a logger none is made.

    Args:
        loggers: ``trainer.loggers``.
        figures: How to make each figure, by the name under which it is logged.
        step: The step that the scalars of the same measurement have.
    """
    writers = []
    for logger in _on_rank_zero(loggers):
        with _going_on(logger):
            if (writer := _figure_writer(logger)) is not None:
                writers.append((logger, writer))
    if not writers:
        return
    made = _make(figures)
    for logger, writer in writers if made else ():
        with _going_on(logger):
            writer(logger, made, step)
    for figure in made.values():
        figure.clear()


def finish_loggers(loggers: Iterable[Logger], history: SimilarityHistory, monitor: str = "similarity") -> None:
    """Log the whole history at the end: W&B gets one long table, and the epochs of the lowest values."""
    for logger in _on_rank_zero(loggers):
        with _going_on(logger):
            if _is_wandb(logger):
                wandb.finish(logger, history, monitor)


def _figure_writer(logger: Logger) -> Callable[[Any, Mapping[str, Figure], int], None] | None:
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.loggers.logger import DummyLogger

    # A CSVLogger deletes an earlier file when its experiment is first touched; the dummy has every method.
    if isinstance(logger, (CSVLogger, DummyLogger)):
        return None
    if _is_tensorboard(logger):
        return tensorboard.write_figures
    if _is_wandb(logger):
        return wandb.write_figures
    return generic.figure_writer(logger)


def _is_tensorboard(logger: Logger) -> bool:
    from lightning.fabric.loggers.tensorboard import TensorBoardLogger

    return isinstance(logger, TensorBoardLogger)


def _is_wandb(logger: Logger) -> bool:
    from lightning.pytorch.loggers import WandbLogger

    return isinstance(logger, WandbLogger)


def _on_rank_zero(loggers: Iterable[Logger]) -> Iterable[Logger]:
    from lightning.pytorch.utilities import rank_zero_only

    return loggers if getattr(rank_zero_only, "rank", 0) == 0 else ()


def _make(figures: Mapping[str, Callable[[], Figure]]) -> dict[str, Figure]:
    made = {}
    for name, make in figures.items():
        try:
            made[name] = make()
        except ModuleNotFoundError as error:
            _warn_once(f"No figures are logged: {error}")
            return made
        except Exception as error:
            _warn_once(f"The figure {name!r} could not be made: {type(error).__name__}: {error}")
    return made


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
