"""Each trajectory in a row: first, last and lowest value, and the trend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_sim.figures.moments import moment, positions
from lightning_sim.record import Key, Scale, SimilarityHistory, Trajectory
from lightning_sim.record.table import KEY_COLUMNS

__all__ = ["COLUMNS", "Row", "ordered_keys", "summarize", "trend_per_epoch"]

_OF_LAST = ("standard_error", "p_value", "note")
COLUMNS = ("run", *KEY_COLUMNS, "measurements", "first", "last", "minimum", "epoch_of_minimum", "trend", *_OF_LAST)


@dataclass(frozen=True, eq=False)
class Row:
    """One trajectory of one run.

    Args:
        run: Name of the run.
        key: What the numbers are about.
        scale: How they are to be read.
        values: Shape (measurements,).
        first: The first finite value; NaN if there is none, like the others.
        last: The last finite value.
        minimum: The lowest finite value.
        epoch_of_minimum: When it was lowest; None if there is no finite value.
        when: The same as text: ``"start"`` before the training, ``"-"`` for None.
        trend: Slope of the least-squares line through the finite values, per epoch.
        span: Epochs from the first finite value to the last.
        standard_error: Of the last finite value; NaN where it has none.
        p_value: Of that value against chance; likewise.
        note: What is to be known of it, in words; or None.
    """

    run: str
    key: Key
    scale: Scale
    values: NDArray[np.float64]
    first: float
    last: float
    minimum: float
    epoch_of_minimum: int | None
    when: str
    trend: float
    span: float
    standard_error: float
    p_value: float
    note: str | None

    def to_record(self) -> dict[str, Any]:
        """The row under the names `COLUMNS`, for JSON and CSV; None stands for NaN."""
        found = self.key._asdict() | {"measurements": len(self.values)}
        found |= {name: getattr(self, name) for name in COLUMNS if name not in found}
        missing = [name for name, value in found.items() if isinstance(value, float) and math.isnan(value)]
        return {name: None if name in missing else found[name] for name in COLUMNS}


def summarize(histories: Mapping[str, SimilarityHistory]) -> list[Row]:
    """A row per trajectory: by measure, within it by layer in the networks' order, within it by run."""
    measured = {run: set(history.keys) for run, history in histories.items()}
    return [
        _row(run, key, history)
        for key in ordered_keys(histories)
        for run, history in histories.items()
        if key in measured[run]
    ]


def ordered_keys(histories: Mapping[str, SimilarityHistory]) -> list[Key]:
    """What any run has: measures of layers first, in order of appearance, their layers in the networks' order."""
    keys = list(dict.fromkeys(key for history in histories.values() for key in history.keys))
    kinds = list(dict.fromkeys(key.title for key in keys))
    layers = list(dict.fromkeys(layer for history in histories.values() for layer in history.layers))
    position: dict[str | None, int] = {layer: index for index, layer in enumerate(layers)}
    return sorted(keys, key=lambda key: (key.layer is None, kinds.index(key.title), position.get(key.layer, 0)))


def trend_per_epoch(trajectory: Trajectory) -> float:
    """Slope of the least-squares line through the finite values; NaN for fewer than two epochs."""
    finite = np.isfinite(trajectory.values)
    x, y = _in_epochs(trajectory)[finite], trajectory.values[finite]
    if len(x) < 2 or np.ptp(x) == 0:
        return math.nan
    centred = x - x.mean()
    return float(centred @ (y - y.mean()) / (centred @ centred))


def _in_epochs(trajectory: Trajectory) -> NDArray[np.float64]:
    """When the measurements were made, in epochs; where an epoch has several, by their steps up to the last epoch."""
    epochs, steps = positions(trajectory.epochs, trajectory.steps), trajectory.steps.astype(np.float64)
    if len(np.unique(epochs)) < len(epochs) and steps[-1] > 0:
        steps *= (int(epochs[-1]) + 1) / (steps[-1] + 1)
        return steps
    return epochs.astype(np.float64)


def _row(run: str, key: Key, history: SimilarityHistory) -> Row:
    trajectory = history.trajectory_of(key)
    at = positions(trajectory.epochs, trajectory.steps)
    finite = np.flatnonzero(np.isfinite(trajectory.values))
    values = trajectory.values[finite]
    lowest = int(finite[values.argmin()]) if len(values) else None
    held = [m for m in history.measurements if m.number(key) is not None]
    newest = held[finite[-1]] if len(values) else None
    error, p = ((newest and newest.statistic(name, key)) for name in ("standard_error", "p_value"))
    return Row(
        run=run,
        key=key,
        scale=history.scale(key.measure),
        values=trajectory.values,
        first=float(values[0]) if len(values) else math.nan,
        last=float(values[-1]) if len(values) else math.nan,
        minimum=float(values.min()) if len(values) else math.nan,
        epoch_of_minimum=None if lowest is None else int(trajectory.epochs[lowest]),
        when="-" if lowest is None else moment(int(at[lowest])).removeprefix("epoch "),
        trend=trend_per_epoch(trajectory),
        span=float(np.ptp(_in_epochs(trajectory)[finite])) if len(values) else 0.0,
        standard_error=math.nan if error is None else error,
        p_value=math.nan if p is None else p,
        note=newest.notes.get(key) if newest else None,
    )
