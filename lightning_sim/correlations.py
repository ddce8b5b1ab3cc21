"""How similarity of features and similarity of outputs move together over a run: live values and single answers."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_sim._measurement import split_name
from lightning_sim.functional.correlation import CorrelationResult, pearson_correlation, spearman_correlation

if TYPE_CHECKING:
    from lightning_sim.history import SimilarityHistory

__all__ = ["correlate", "correlation_names", "is_correlation", "live_correlations", "undefined"]

LEAST_POINTS = 4
MOST_LAYERS_IN_DETAIL = 16
STATISTICS = ("pearson", "pearson_low", "pearson_high", "spearman", "spearman_low", "spearman_high", "slope")
_WITHOUT_INTERVALS = ("pearson", "spearman", "slope")
_LAYERED = ("cka", "nbs")
_OUTPUTS = ("jsd", "rank_correlation")
_OVER_LAYERS = "cka_nbs"

Method = Literal["pearson", "spearman"]
undefined = CorrelationResult(*[math.nan] * 5)


def live_correlations(history: SimilarityHistory) -> dict[str, float]:
    """Every correlation that is logged beside the newest measurement; empty before the fourth.

    ``<measure>_<output>_<statistic>/<representation>/<layer>``, for instance
    ``cka_jsd_pearson_low/features/conv1``: the trajectory of CKA or NBS of one layer against that of the outputs'
    Jensen-Shannon divergence or rank correlation, over all measurements so far. The statistics are ``pearson``,
    ``spearman``, the ends of their 95% intervals, ``<...>_low`` and ``<...>_high``, and ``slope``, in units of the
    output measure per unit of similarity. ``cka_nbs_<statistic>``, without a layer, is over the layers of the newest
    measurement: whether both measures order them alike.

    With more than 16 layers only ``pearson``, ``spearman`` and ``slope`` against the Jensen-Shannon divergence are
    given, six numbers per layer rather than 28; `SimilarityHistory.correlation` has the others.

    A measurement counts where both numbers are finite. NaN are correlations of fewer than four such pairs, and of
    a trajectory that does not move beyond the rounding of float32. Measurements of one run are not independent: the
    intervals are too narrow, and say how well the line fits rather than what another run would give.

    Example:
        >>> from lightning_sim._measurement import Measurement
        >>> from lightning_sim.history import SimilarityHistory
        >>> history = SimilarityHistory({})
        >>> for epoch, (cka, jsd) in enumerate([(1.0, 0.0), (0.75, 0.125), (0.5, 0.375), (0.25, 0.5)]):
        ...     history.append(Measurement(epoch, epoch, {"cka/features/conv": cka, "jsd": jsd}))
        >>> for name, value in live_correlations(history).items():
        ...     print(f"{value:6.3f}  {name}")
        -0.990  cka_jsd_pearson/features/conv
        -1.000  cka_jsd_pearson_low/features/conv
        -0.594  cka_jsd_pearson_high/features/conv
        -1.000  cka_jsd_spearman/features/conv
        -1.000  cka_jsd_spearman_low/features/conv
        -1.000  cka_jsd_spearman_high/features/conv
        -0.700  cka_jsd_slope/features/conv
    """
    measurements = history.measurements
    if len(measurements) < LEAST_POINTS:
        return {}
    newest = measurements[-1].values
    trajectory = functools.cache(
        lambda name: np.array([measurement.values.get(name, math.nan) for measurement in measurements])
    )
    # Both methods serve several statistics: computed once for each pair of names.
    over_time = functools.cache(lambda first, second, method: correlate(trajectory(first), trajectory(second), method))
    over_layers = functools.cache(lambda method: correlate(*_values_of_layers(newest), method))
    found = {}
    for name in correlation_names(newest):
        pair, representation, layer = split_name(name)
        first, second, statistic = _PARTS[pair]
        method = "spearman" if statistic.startswith("spearman") else "pearson"
        result = (
            over_layers(method) if layer is None else over_time(f"{first}/{representation}/{layer}", second, method)
        )
        found[name] = _statistic(result, statistic)
    return found


def correlation_names(names: Iterable[str]) -> list[str]:
    """The names of the correlations that follow from measured `names`, as `live_correlations` gives them.

    Example:
        >>> len(correlation_names(["cka/features/conv", "jsd"]))
        7
        >>> len(correlation_names([*(f"cka/features/{layer}" for layer in range(50)), "jsd", "rank_correlation"]))
        150
    """
    names = list(dict.fromkeys(names))
    layered = [name for name in names if (parts := split_name(name))[0] in _LAYERED and parts[2] is not None]
    in_detail = len({split_name(name)[1:] for name in layered}) <= MOST_LAYERS_IN_DETAIL
    outputs = [output for output in _OUTPUTS[: None if in_detail else 1] if output in names]
    found = []
    for name in layered:
        measure, representation, layer = split_name(name)
        for output in outputs:
            for statistic in STATISTICS if in_detail else _WITHOUT_INTERVALS:
                found.append(f"{measure}_{output}_{statistic}/{representation}/{layer}")
    if len(_in_both(names)) >= LEAST_POINTS:
        found += [f"{_OVER_LAYERS}_{statistic}" for statistic in STATISTICS]
    return found


def is_correlation(name: str) -> bool:
    """Whether a logged name is one of `correlation_names`, of whatever layer.

    Example:
        >>> is_correlation("cka_jsd_pearson_low/features/conv"), is_correlation("rank_correlation")
        (True, False)
    """
    return split_name(name)[0] in _PARTS


def correlate(
    first: NDArray[np.float64], second: NDArray[np.float64], method: Method = "pearson", confidence: float = 0.95
) -> CorrelationResult:
    """Correlation of two trajectories over the pairs that are finite; all NaN where that is undefined.

    Args:
        first: Shape (measurements,); the slope is that of `second` on `first`.
        second: Shape (measurements,).
        method: ``"pearson"`` or ``"spearman"``.
        confidence: Coverage of the interval.
    """
    finite = np.isfinite(first) & np.isfinite(second)
    first, second = first[finite], second[finite]
    if len(first) < LEAST_POINTS or _does_not_move(first) or _does_not_move(second):
        return undefined
    compute = spearman_correlation if method == "spearman" else pearson_correlation
    return compute(torch.from_numpy(first), torch.from_numpy(second), confidence=confidence)


def _does_not_move(values: NDArray[np.float64]) -> bool:
    """A similarity that stays at 1 still wobbles in its last float32 digits, which correlate with nothing real."""
    return bool(np.ptp(values) <= 8 * np.finfo(np.float32).eps * np.abs(values).max())


def _statistic(result: CorrelationResult, statistic: str) -> float:
    if statistic == "slope":
        return result.slope
    if statistic.endswith("_low"):
        return result.low
    return result.high if statistic.endswith("_high") else result.value


def _in_both(names: Sequence[str]) -> list[str]:
    """The layers whose features have both CKA and NBS."""
    cka, nbs = ([split_name(n)[2] for n in names if split_name(n)[:2] == (m, "features")] for m in _LAYERED)
    return [layer for layer in cka if layer is not None and layer in nbs]


def _values_of_layers(values: dict[str, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    layers = _in_both(list(values))
    cka, nbs = (np.array([values[f"{measure}/features/{layer}"] for layer in layers]) for measure in _LAYERED)
    return cka, nbs


_PARTS = {
    f"{first}_{second}_{statistic}": (first, second, statistic)
    for first, second in [*((m, o) for m in _LAYERED for o in _OUTPUTS), _LAYERED]
    for statistic in STATISTICS
}
