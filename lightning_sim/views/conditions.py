"""Measures of outputs under every condition of the samples, over the measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_sim.figures import Heatmap, heatmap_figure
from lightning_sim.figures.moments import START, placed
from lightning_sim.record import Key, SimilarityHistory
from lightning_sim.record.correlations import numbers_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["conditions_figure", "conditions_heatmap", "under_conditions"]

_MOST_COLUMNS = 60


def under_conditions(history: SimilarityHistory) -> list[str]:
    """The measures of outputs that were taken under several conditions."""
    keys = [key for key in history.keys if key.layer is None and key.condition]
    return list(dict.fromkeys(key.measure for key in keys))


def conditions_heatmap(history: SimilarityHistory, measure: str = "agreement") -> Heatmap:
    """A measure of outputs, conditions in rows and measurements in columns, by their epochs; at most 60.

    Raises:
        ValueError: If it was not taken under conditions.
    """
    keys = [key for key in history.keys if key._replace(condition="") == Key(measure)]
    if measure not in under_conditions(history):
        known = ", ".join(under_conditions(history)) or "nothing"
        raise ValueError(f"{measure!r} was not measured under conditions; {known} was")
    count = len(history.measurements)
    shown = np.linspace(0, count - 1, min(count, _MOST_COLUMNS)).round().astype(int)
    values = np.array([numbers_of(history.measurements, key) for key in keys], dtype=np.float32)[:, shown]
    scale, at = history.scale(measure), [position for position, _ in placed(history.measurements)]
    return Heatmap(
        values,
        [key.condition or "clean" for key in keys],
        ["start" if at[index] == START else str(at[index]) for index in shown],
        f"{measure}, conditions over epochs",
        scale.low,
        scale.high,
        ("conditions", "epochs"),
    )


def conditions_figure(history: SimilarityHistory, measure: str = "agreement") -> Figure:
    """The heatmap of :func:`conditions_heatmap`."""
    return heatmap_figure(conditions_heatmap(history, measure))
