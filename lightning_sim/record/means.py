"""Every measure of layers as one number: the mean over the layers, for what looks at one number."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lightning_sim.record.key import Key
from lightning_sim.record.measurement import Measurement

__all__ = ["layer_means", "leading", "mean_keys"]


def layer_means(measurement: Measurement) -> dict[Key, float]:
    """Mean over the layers of every measure of layers, for the first representation that it was asked for.

    It is logged beside the values that it follows from. Layers whose value is NaN are left out; where all of them are,
    so is the mean.

    Example:
        >>> values = {"cka/features/conv": 0.5, "cka/features/dense": 0.25, "cka/gradients/conv": 0.0, "jsd": 0.1}
        >>> {key.name: value for key, value in layer_means(Measurement(0, 9, values)).items()}
        {'cka': 0.375}
    """
    found: dict[Key, list[float]] = {key: [] for key in mean_keys(measurement.by_key)}
    for key in leading(measurement.by_key):
        value = measurement.by_key[key]
        if (mean := Key(key.measure, condition=key.condition)) in found and math.isfinite(value):
            found[mean].append(value)
    return {key: math.fsum(values) / len(values) if values else math.nan for key, values in found.items()}


def mean_keys(keys: Iterable[Key]) -> list[Key]:
    """The keys of the means over layers; none for a measure that has a number without a layer itself."""
    keys = list(keys)
    own = {key for key in keys if key.layer is None}
    means = dict.fromkeys(Key(key.measure, condition=key.condition) for key in keys if key.layer is not None)
    return [key for key in means if key not in own]


def leading(keys: Iterable[Key]) -> list[Key]:
    """Of the keys of layers, those of the first representation of each measure."""
    first: dict[tuple[str, str], str | None] = {}
    return [
        key
        for key in keys
        if key.layer is not None
        and first.setdefault((key.measure, key.condition), key.representation) == key.representation
    ]
