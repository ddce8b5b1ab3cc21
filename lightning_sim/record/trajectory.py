"""One number over the course of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_sim.figures import Panel, lines_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Trajectory"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One number over the course of training.

    Args:
        name: as it was logged, without ``similarity/``: ``"cka/features/layer3"`` or ``"jsd"``.
        epochs: shape (measurements,), integers.
        steps: shape (measurements,), integers, the loggers' steps.
        values: shape (measurements,); NaN where a measurement failed.
    """

    name: str
    epochs: NDArray[np.int64]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        ends = f", {self.values[0]:.4g} to {self.values[-1]:.4g}" if len(self) else ""
        return f"Trajectory({self.name!r}, {len(self)} measurements{ends})"

    def plot(self) -> Figure:
        """Value against epoch; needs the extra ``plot``."""
        return lines_figure(Panel(self.name, {self.name: self}))
