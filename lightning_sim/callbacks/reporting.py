"""What is told of measurements: scalars and figures to the loggers, and warnings to the user."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lightning_sim.callbacks.logged import LogScalars
from lightning_sim.loggers import log_figures, log_sketches, setup_loggers
from lightning_sim.record import Key, Measurement, SimilarityHistory
from lightning_sim.record.correlations import LEAST_POINTS, correlation_key, live_correlations
from lightning_sim.record.means import layer_means, leading, mean_keys
from lightning_sim.views import conditions_figure, correlation_figure, interchange_figure
from lightning_sim.views.conditions import under_conditions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Reports", "figures_of", "measurements_before"]


class Reports:
    """What a monitor of this name says."""

    def __init__(self, name: str) -> None:
        self._name = name
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
        correlations = live_correlations(history.measurements)
        following = {**layer_means(measurement), **correlations}
        keys = [*measurement.by_key, *following]
        if not self._set_up.issuperset(keys):
            self._set_up.update(keys)
            setup_loggers(trainer.loggers, keys, history, self._name)
        logged = measurement.values | {key.name: value for key, value in following.items()}
        log_scalars(network, {f"{self._name}/{name}": value for name, value in logged.items()}, measurement.step)
        log_figures(trainer.loggers, figures_of(measurement, correlations, history, self._name), measurement.step)
        if sketches is not None:
            log_sketches(trainer.loggers, sketches, self._name)

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


def figures_of(
    measurement: Measurement, correlations: Mapping[Key, float], history: SimilarityHistory, monitor: str
) -> dict[str, Callable[[], Figure]]:
    """How to make each figure, by the name under which loggers have it."""
    figures: dict[str, Callable[[], Figure]] = {
        f"{monitor}/matrix/{matrix.key.title.replace(', ', '/')}": partial(
            matrix.plot,
            f"{matrix.key.title}, epoch {measurement.epoch}",
            scale=history.scale(matrix.measure),
        )
        for matrix in measurement.matrices
    }
    if any(key.representation == "features" for key in correlations):
        figures[f"{monitor}/correlation/cka_jsd/features"] = partial(correlation_figure, history)
    measured = {key.measure for key in measurement.by_key}
    if {"cka", "stitching"} <= measured:
        figures[f"{monitor}/scatter/cka_stitching"] = partial(interchange_figure, history)
    if Key("agreement") in measurement.by_key and "agreement" in under_conditions(history):
        figures[f"{monitor}/matrix/agreement/conditions"] = partial(conditions_figure, history)
    return figures
