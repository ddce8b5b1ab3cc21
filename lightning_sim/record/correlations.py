"""How similarity of features and similarity of outputs move together over a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_sim.functional.correlation import CorrelationResult, pearson_correlation, spearman_correlation
from lightning_sim.record.key import Key
from lightning_sim.record.measurement import Measurement
from lightning_sim.record.scale import Scale

__all__ = [
    "CORRELATION",
    "CORRELATION_SCALE",
    "LEAST_POINTS",
    "Method",
    "correlate",
    "correlation_key",
    "live_correlations",
]

CORRELATION = "cka_jsd_pearson"
CORRELATION_SCALE = Scale(low=-1.0, high=1.0, group="correlations")
LEAST_POINTS = 4

Method = Literal["pearson", "spearman"]
_undefined = CorrelationResult(*[math.nan] * 5)


def live_correlations(measurements: Sequence[Measurement]) -> dict[Key, float]:
    """Pearson's correlation of every layer's CKA with the outputs' Jensen-Shannon divergence over all measurements.

    It is logged beside the newest measurement, from the fourth on; `SimilarityHistory.correlation` has the others, and
    their intervals. A measurement counts where both numbers are finite.

    Example:
        >>> measurements = [
        ...     Measurement(epoch, epoch, {"cka/features/conv": cka, "jsd": jsd})
        ...     for epoch, (cka, jsd) in enumerate([(1.0, 0.0), (0.75, 0.125), (0.5, 0.375), (0.25, 0.5)])
        ... ]
        >>> {key.name: round(value, 3) for key, value in live_correlations(measurements).items()}
        {'cka_jsd_pearson/features/conv': -0.99}
    """
    if len(measurements) < LEAST_POINTS:
        return {}
    newest = measurements[-1].by_key
    found = {}
    for key in newest:
        if (correlation := correlation_key(key, newest)) is not None:
            both = key, Key("jsd", condition=key.condition)
            x, y = (np.array([m.by_key.get(one, math.nan) for m in measurements]) for one in both)
            found[correlation] = correlate(x, y).value
    return found


def correlation_key(key: Key, keys: Collection[Key]) -> Key | None:
    """Of the correlation with the divergence of the outputs under the same condition, where both are measured."""
    if key.measure != "cka" or key.layer is None or Key("jsd", condition=key.condition) not in keys:
        return None
    return key._replace(measure=CORRELATION)


def correlate(
    first: NDArray[np.float64], second: NDArray[np.float64], method: Method = "pearson", confidence: float = 0.95
) -> CorrelationResult:
    """Correlation of two trajectories over the pairs that are finite; all NaN where that is undefined.

    Args:
        first: shape (measurements,); the slope is that of `second` on `first`.
        second: shape (measurements,).
        method: ``"pearson"`` or ``"spearman"``.
        confidence: coverage of the interval.
    """
    finite = np.isfinite(first) & np.isfinite(second)
    first, second = first[finite], second[finite]
    if len(first) < LEAST_POINTS or _does_not_move(first) or _does_not_move(second):
        return _undefined
    compute = spearman_correlation if method == "spearman" else pearson_correlation
    return compute(torch.from_numpy(first), torch.from_numpy(second), confidence=confidence)


def _does_not_move(values: NDArray[np.float64]) -> bool:
    """A similarity that stays at 1 still wobbles in its last float32 digits, which correlate with nothing real."""
    return bool(np.ptp(values) <= 8 * np.finfo(np.float32).eps * np.abs(values).max())
