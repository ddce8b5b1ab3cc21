"""One number over the course of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_sim.figures import Panel, lines_figure
from lightning_sim.record.correlations import errors_of, numbers_of
from lightning_sim.record.key import Key
from lightning_sim.record.measurement import Measurement
from lightning_sim.record.scale import Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Trajectory", "panels_of", "trajectory_over"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One number over the course of training.

    Args:
        name: as it was logged, without ``similarity/``: ``"cka/features/layer3"`` or ``"jsd"``.
        epochs: shape (measurements,), integers.
        steps: shape (measurements,), integers, the loggers' steps.
        values: shape (measurements,); NaN where a measurement failed.
        standard_errors: shape (measurements,), of other samples, not of other trainings; NaN where there is none.
    """

    name: str
    epochs: NDArray[np.int64]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    standard_errors: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        ends = f", {self.values[0]:.4g} to {self.values[-1]:.4g}" if len(self) else ""
        return f"Trajectory({self.name!r}, {len(self)} measurements{ends})"

    def plot(self) -> Figure:
        """Value against epoch; needs the extra ``plot``."""
        return lines_figure(Panel(self.name, {self.name: self}))


def trajectory_over(measurements: Sequence[Measurement], key: Key) -> Trajectory:
    """Of one number, over those measurements that have it."""
    found = [m for m in measurements if m.number(key) is not None]
    epochs, steps = (np.array([getattr(m, moment) for m in found], dtype=np.int64) for moment in ("epoch", "step"))
    return Trajectory(key.name, epochs, steps, numbers_of(found, key), errors_of(found, key))


def panels_of(trajectories: Mapping[Key, Trajectory], scale: Callable[[str], Scale]) -> list[Panel]:
    """A chart for the layers of each kind of number, and then one for each group of what belongs to no layer."""
    of_layers: dict[Key, dict[str, Trajectory]] = {}
    others: dict[str, dict[str, Trajectory]] = {}
    for key, trajectory in trajectories.items():
        if key.layer is not None:
            of_layers.setdefault(key._replace(layer=None), {})[key.layer] = trajectory
        else:
            others.setdefault(scale(key.measure).chart(key.name), {})[key.name] = trajectory
    return [
        *(Panel(kind.title, lines, by_depth=True) for kind, lines in of_layers.items()),
        *(Panel(title, lines) for title, lines in others.items()),
    ]
