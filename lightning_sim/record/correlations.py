"""How similarity of features and similarity of outputs move together over a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_sim._arguments import check_number
from lightning_sim._checks import check_choice
from lightning_sim.functional.correlation import CorrelationResult, pearson_correlation, spearman_correlation
from lightning_sim.record.asking import asked_key, check_asked, layers_of, listed
from lightning_sim.record.key import Key
from lightning_sim.record.means import leading
from lightning_sim.record.measurement import Measurement

__all__ = [
    "CORRELATION",
    "LEAST_POINTS",
    "Method",
    "correlate",
    "correlation_key",
    "errors_of",
    "live_correlations",
    "numbers_of",
    "paired",
]

CORRELATION = "cka_jsd_pearson"
LEAST_POINTS = 4

Method = Literal["pearson", "spearman"]
_undefined = CorrelationResult(*[math.nan] * 5)


def live_correlations(measurements: Sequence[Measurement]) -> dict[Key, float]:
    """Pearson's correlation of every layer's CKA with the outputs' Jensen-Shannon divergence over all measurements.

    One for each layer, of the first representation.

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
    for key in leading(newest):
        if (correlation := correlation_key(key, newest)) is not None:
            x, y = (numbers_of(measurements, one) for one in (key, Key("jsd", condition=key.condition)))
            found[correlation] = correlate(x, y).value
    return found


def numbers_of(measurements: Iterable[Measurement], key: Key) -> NDArray[np.float64]:
    """One number in every measurement, shape (measurements,); NaN where it was not measured."""
    return np.array([m.number(key) for m in measurements], dtype=np.float64)


def errors_of(measurements: Iterable[Measurement], key: Key) -> NDArray[np.float64]:
    """Its standard errors, likewise; NaN where it has none."""
    return np.array([m.statistic("standard_error", key) for m in measurements], dtype=np.float64)


def paired(
    measurements: Sequence[Measurement],
    order: Iterable[str],
    measures: tuple[str, str],
    layer: str | None,
    representation: str,
    condition: str,
    epoch: int | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What `SimilarityHistory.correlation` correlates: over the measurements, or over the layers in one of them."""
    for measure in measures:
        check_asked(measure, layer, representation, condition, epoch=epoch)
    outputs = [Key(measure, condition=condition) for measure in measures]
    of_outputs = [any(m.number(key) is not None for m in measurements) for key in outputs]
    if layer is None and not any(of_outputs):
        x, y = (_over_layers(measurements, epoch, measure, representation, condition) for measure in measures)
    elif epoch is not None:
        raise ValueError(f"`epoch` is for correlations over layers, without `layer`; got epoch {epoch}")
    else:
        layers = [None if alone else layer for alone in of_outputs]
        asked = zip(measures, layers, strict=True)
        keys = [asked_key(measurements, order, *one, representation, condition) for one in asked]
        x, y = (numbers_of(measurements, key) for key in keys)
    return x, y


def _over_layers(
    measurements: Sequence[Measurement], epoch: int | None, measure: str, representation: str, condition: str
) -> NDArray[np.float64]:
    """One measure of every layer in the last measurement of an epoch, or of all; NaN for layers without it."""
    newest = next((m for m in reversed(measurements) if epoch is None or m.epoch == epoch), None)
    if newest is None:
        at = "" if epoch is None else f" at epoch {epoch}"
        epochs = list(dict.fromkeys(measurement.epoch for measurement in measurements))
        raise ValueError(f"nothing was measured{at}; epochs are {listed(epochs) or 'none'}")
    asked = Key(measure, representation, condition=condition)
    numbers = [newest.number(asked._replace(layer=layer)) for layer in layers_of(newest.by_key)]
    if all(number is None for number in numbers):
        held = ", ".join(dict.fromkeys(key.measure for key in newest.by_key)) or "nothing"
        raise ValueError(f"no layer has {asked.title} in this measurement; it holds {held}")
    return np.array(numbers, dtype=np.float64)


def correlation_key(key: Key, keys: Collection[Key]) -> Key | None:
    """Of the correlation with the divergence of the outputs under the same condition, where both are measured."""
    if key.measure != "cka" or key.layer is None or Key("jsd", condition=key.condition) not in keys:
        return None
    return key._replace(measure=CORRELATION)


def correlate(
    first: NDArray[np.float64], second: NDArray[np.float64], method: Method = "pearson", confidence: float = 0.95
) -> CorrelationResult:
    """Correlation of two trajectories over the pairs that are finite; the slope is of the second on the first.

    All is NaN for fewer than `LEAST_POINTS` pairs, and where one does not move.
    """
    check_choice(method, "method", ("pearson", "spearman"))
    if not 0 < check_number(confidence, "confidence") < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, such as 0.95, got {confidence}")
    finite = np.isfinite(first) & np.isfinite(second)
    first, second = first[finite], second[finite]
    if len(first) < LEAST_POINTS or _does_not_move(first) or _does_not_move(second):
        return _undefined
    compute = spearman_correlation if method == "spearman" else pearson_correlation
    return compute(torch.from_numpy(first), torch.from_numpy(second), confidence=confidence)


def _does_not_move(values: NDArray[np.float64]) -> bool:
    """A similarity that stays at 1 still wobbles in its last float32 digits, which correlate with nothing real."""
    return bool(np.ptp(values) <= 8 * np.finfo(np.float32).eps * np.abs(values).max())
