"""When measurements were made, as axes and titles say it: the one before training is the start, and not of epoch 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axis import Axis

__all__ = ["START", "mark_epochs", "moment", "placed", "positions"]

Moment = TypeVar("Moment", bound=Any)
START = -1  # on an axis of epochs, which count from 0: as far from the end of epoch 0 as that from the end of epoch 1


def positions(epochs: ArrayLike, steps: ArrayLike) -> NDArray[np.int64]:
    """Where measurements stand on an axis of epochs: at their epoch, or at `START` where the first is before training.

    That one was made at step 0, and the next one at the last step of an epoch, or in the same epoch.

    Example:
        >>> positions([0, 0, 1], [0, 9, 19]).tolist(), positions([0, 1], [9, 19]).tolist()
        ([-1, 0, 1], [0, 1])
    """
    found, steps = np.array(epochs, dtype=np.int64), np.asarray(steps)
    if len(found) > 1 and found[0] == steps[0] == 0:
        epoch, step = int(found[1]), int(steps[1])
        if epoch == 0 or (step > epoch and (step + 1) % (epoch + 1) == 0):
            found[0] = START
    return found


def placed(measurements: Sequence[Moment]) -> list[tuple[int, Moment]]:
    """All measurements of a run, which have epochs and steps, with their positions."""
    at = positions([m.epoch for m in measurements], [m.step for m in measurements])
    return list(zip(map(int, at), measurements, strict=True))


def moment(position: int) -> str:
    """What titles and tables call it.

    Example:
        >>> moment(START), moment(2)
        ('start', 'epoch 2')
    """
    return "start" if position == START else f"epoch {position}"


def mark_epochs(axis: Axis, at: NDArray[np.int64]) -> str:
    """Ticks at some of the positions, and what the axis is to be called."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    low, high = (int(at.min()), int(at.max())) if len(at) else (0, 0)
    ticks = [tick for tick in MaxNLocator(nbins=7, integer=True).tick_values(max(low, 0), high) if low <= tick <= high]
    if low == START:
        ticks = [START, *(tick for tick in ticks if tick - START > (high - START) / 10)]
    name: Any = lambda tick, _: "start" if tick == START else f"{tick:g}"  # noqa: E731
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(name))
    return "epoch (start: before training)" if low == START else "epoch"
