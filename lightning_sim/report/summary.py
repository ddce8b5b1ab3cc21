"""Each trajectory in a row: first, last and lowest value, and the trend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_sim._measurement import split_name
from lightning_sim.history import SimilarityHistory, Trajectory

__all__ = ["COLUMNS", "Row", "ordered_names", "summarize", "trend_per_epoch"]

COLUMNS = (
    "run",
    "measure",
    "representation",
    "layer",
    "measurements",
    "first",
    "last",
    "minimum",
    "epoch_of_minimum",
    "trend",
)


@dataclass(frozen=True, eq=False)
class Row:
    """One trajectory of one run.

    Args:
        run: Name of the run.
        measure: For instance ``"cka"``.
        representation: For instance ``"features"``; None for outputs and whole networks.
        layer: None for outputs and whole networks.
        values: Shape (measurements,).
        first: The first finite value; NaN if there is none, like the others.
        last: The last finite value.
        minimum: The lowest finite value.
        epoch_of_minimum: When it was lowest; None if there is no finite value.
        trend: Slope of the least-squares line through the finite values, per epoch.
    """

    run: str
    measure: str
    representation: str | None
    layer: str | None
    values: NDArray[np.float64]
    first: float
    last: float
    minimum: float
    epoch_of_minimum: int | None
    trend: float

    def to_record(self) -> dict[str, Any]:
        """The row under the names `COLUMNS`, for JSON and CSV; None stands for NaN."""
        found = {"measurements": len(self.values)} | {
            name: getattr(self, name) for name in COLUMNS if name != "measurements"
        }
        missing = [name for name, value in found.items() if isinstance(value, float) and math.isnan(value)]
        return {name: None if name in missing else found[name] for name in COLUMNS}


def summarize(histories: Mapping[str, SimilarityHistory]) -> list[Row]:
    """A row per trajectory: by measure, within it by layer in the networks' order, within it by run."""
    measured = {run: set(history.names) for run, history in histories.items()}
    return [
        _row(run, name, history)
        for name in ordered_names(histories)
        for run, history in histories.items()
        if name in measured[run]
    ]


def ordered_names(histories: Mapping[str, SimilarityHistory]) -> list[str]:
    """Every measured name of any run, without ``seconds``: layers first, by measure and by depth, then outputs."""
    names = dict.fromkeys(n for history in histories.values() for n in history.names if n != "seconds")
    kinds = list(dict.fromkeys(split_name(name)[:2] for name in names))
    layers = list(dict.fromkeys(layer for history in histories.values() for layer in history.layers))
    position: dict[str | None, int] = {layer: index for index, layer in enumerate(layers)}

    def key(name: str) -> tuple[bool, int, int]:
        measure, representation, layer = split_name(name)
        return layer is None, kinds.index((measure, representation)), position.get(layer, 0)

    return sorted(names, key=key)


def trend_per_epoch(trajectory: Trajectory) -> float:
    """Slope of the least-squares line through the finite values; NaN for fewer than two epochs."""
    finite = np.isfinite(trajectory.values)
    x, y = trajectory.epochs[finite].astype(np.float64), trajectory.values[finite]
    if len(x) < 2 or np.ptp(x) == 0:
        return math.nan
    centred = x - x.mean()
    return float(centred @ (y - y.mean()) / (centred @ centred))


def _row(run: str, name: str, history: SimilarityHistory) -> Row:
    measure, representation, layer = split_name(name)
    trajectory = (
        history.trajectory(measure)
        if layer is None or representation is None
        else history.trajectory(measure, layer=layer, representation=representation)
    )
    finite = np.flatnonzero(np.isfinite(trajectory.values))
    values = trajectory.values[finite]
    lowest = int(finite[values.argmin()]) if len(values) else None
    return Row(
        run=run,
        measure=measure,
        representation=representation,
        layer=layer,
        values=trajectory.values,
        first=float(values[0]) if len(values) else math.nan,
        last=float(values[-1]) if len(values) else math.nan,
        minimum=float(values.min()) if len(values) else math.nan,
        epoch_of_minimum=None if lowest is None else int(trajectory.epochs[lowest]),
        trend=trend_per_epoch(trajectory),
    )
