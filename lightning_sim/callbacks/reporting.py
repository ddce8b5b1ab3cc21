"""What is told of measurements: scalars and figures to the loggers, and warnings to the user."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lightning_sim.callbacks.logged import LogScalars
from lightning_sim.figures import heatmap_pixels
from lightning_sim.figures.moments import START, moment
from lightning_sim.loggers import finish_loggers, log_figures, log_margins, log_sketches, setup_loggers
from lightning_sim.loggers.adapter import Pixels
from lightning_sim.record import Key, SimilarityHistory
from lightning_sim.record.correlations import LEAST_POINTS, correlation_key, live_correlations
from lightning_sim.record.means import layer_means, leading, mean_keys
from lightning_sim.views import conditions_figure, correlation_figure, interchange_figure
from lightning_sim.views.conditions import under_conditions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Reports", "figures_of", "measurements_before"]


class Reports:
    """What a monitor of this name says, with figures of every n-th measurement and the last one, or without for 0."""

    def __init__(self, name: str, figures_every: int) -> None:
        self._name = name
        self._every = figures_every
        self._set_up: set[Key] = set()
        self._warned: set[str] = set()

    def start(self) -> None:
        """Loggers may be others than before."""
        self._set_up = set()

    def log(
        self,
        history: SimilarityHistory,
        trainer: Trainer,
        network: LightningModule,
        log_scalars: LogScalars,
        sketches: Path | None,
    ) -> None:
        """The newest measurement, with the means and correlations that follow from it, under its step; and a file."""
        measurement = history.measurements[-1]
        following = {**layer_means(measurement), **live_correlations(history.measurements)}
        keys = [*measurement.by_key, *following]
        if not self._set_up.issuperset(keys):
            self._set_up.update(keys)
            setup_loggers(trainer.loggers, keys, history, self._name)
        logged = measurement.values | {key.name: value for key, value in following.items()}
        log_scalars(network, {f"{self._name}/{name}": value for name, value in logged.items()}, measurement.step)
        log_margins(trainer.loggers, measurement, self._name)
        if self._is_drawn(history):
            at = moment(measurement.epoch if trainer.global_step else START)
            log_figures(trainer.loggers, figures_of(history, self._name, at), measurement.step)
        if sketches is not None:
            log_sketches(trainer.loggers, sketches, self._name)

    def finish(self, history: SimilarityHistory, trainer: Trainer) -> None:
        """What only the end of a training shows: the figures over all of it, and what loggers want of the history."""
        finish_loggers(trainer.loggers, history, self._name)
        if self._every and len(history):
            last = history.measurements[-1]
            figures = {} if self._is_drawn(history) else figures_of(history, self._name, moment(last.epoch))
            found = live_correlations(history.measurements)
            if any(key.representation == "features" and not key.condition for key in found):
                figures[f"{self._name}/correlation/cka_jsd/features"] = partial(correlation_figure, history)
            log_figures(trainer.loggers, figures, last.step)

    def _is_drawn(self, history: SimilarityHistory) -> bool:
        return bool(self._every) and (len(history) - 1) % self._every == 0

    def warn(self, message: str) -> None:
        """Every message once, on the first rank: all ranks have the same values."""
        if message not in self._warned and getattr(rank_zero_only, "rank", 0) == 0:
            self._warned.add(message)
            warnings.warn(f"SimilarityMonitor: {message}", UserWarning, stacklevel=4)


def measurements_before(keys: Sequence[Key], measured: int) -> dict[str, int]:
    """Names of all that is logged -> how many measurements come before its first value, after so many."""
    late = max(0, LEAST_POINTS - 1 - measured)
    correlations = [found for key in leading(keys) if (found := correlation_key(key, keys))]
    at_once = [*keys, *mean_keys(keys), Key("seconds")]
    return {key.name: 0 for key in at_once} | {key.name: late for key in correlations}


def figures_of(history: SimilarityHistory, monitor: str, at: str) -> dict[str, Callable[[], Figure | Pixels]]:
    """How to make each figure of the newest measurement, by the name under which loggers have it."""
    measurement = history.measurements[-1]
    figures: dict[str, Callable[[], Figure | Pixels]] = {}
    for matrix in measurement.matrices:
        heatmap = matrix.heatmap(f"{matrix.key.title}, {at}", history.scale(matrix.measure))
        figures[f"{monitor}/matrix/{matrix.key.title.replace(', ', '/')}"] = partial(heatmap_pixels, heatmap)
    if {"cka", "stitching"} <= {key.measure for key in measurement.by_key}:
        figures[f"{monitor}/scatter/cka_stitching"] = partial(interchange_figure, history)
    if Key("agreement") in measurement.by_key and "agreement" in under_conditions(history):
        figures[f"{monitor}/matrix/agreement/conditions"] = partial(conditions_figure, history)
    return figures
