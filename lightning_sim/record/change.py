"""How much a number has changed between two measurements, and how sure that is."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lightning_sim._arguments import check_integer
from lightning_sim.record.asking import listed
from lightning_sim.record.trajectory import Trajectory

__all__ = ["Change", "change_between"]


class Change(NamedTuple):
    """The difference of two values of one run.

    Attributes:
        value: later minus earlier.
        standard_error: of the difference, as if both values were of different samples. They are of the same, which move
            them together, so that the true one is smaller: what is clear by this one is clear. NaN where one of the
            values has none.
    """

    value: float
    standard_error: float


def change_between(trajectory: Trajectory, from_epoch: int | None, to_epoch: int | None) -> Change:
    """From the last measurement of one epoch, or the first of all, to that of another, or the last of all.

    Raises:
        ValueError: for an epoch that was not measured, with those that were, and for a trajectory without values.
    """
    if not len(trajectory):
        raise ValueError(f"{trajectory.name} was never measured")
    start, end = _place(trajectory, from_epoch, "from_epoch", 0), _place(trajectory, to_epoch, "to_epoch", -1)
    difference = trajectory.values[end] - trajectory.values[start]
    return Change(float(difference), math.hypot(trajectory.standard_errors[start], trajectory.standard_errors[end]))


def _place(trajectory: Trajectory, epoch: int | None, argument: str, otherwise: int) -> int:
    if epoch is None:
        return otherwise
    check_integer(epoch, argument, least=-1)
    places = np.flatnonzero(trajectory.epochs == epoch)
    if not len(places):
        raise ValueError(f"`{argument}` {epoch} was not measured; epochs are {listed(trajectory.epochs.tolist())}")
    return int(places[-1])
