"""A run from the scalars that a logger kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_sim.record.key import parse_name
from lightning_sim.record.measurement import Measurement
from lightning_sim.record.naming import derived, is_epoch, measured_name

__all__ = ["RunContent", "run_of_scalars"]

#: metadata and measurements of a run
RunContent = tuple[dict[str, Any], list[Measurement]]


def run_of_scalars(
    rows: Iterable[tuple[int, Mapping[str, float]]], metadata: Mapping[str, Any], monitor: str, path: Path
) -> RunContent:
    """Metadata and measurements from (step, scalars) pairs, whose names still start with ``<monitor>/``.

    Lightning logs ``epoch`` beside every scalar; where it is missing at a step, the epoch is -1. Loggers may
    split one step over several rows and repeat it after a resume: the later value counts. They keep no order
    of names, so names are sorted, numbers in them by value.

    Raises:
        ValueError: if no name starts with ``<monitor>/``; the message says that `path` was read.
    """
    values: dict[int, dict[str, float]] = {}
    epochs: dict[int, int] = {}
    for step, scalars in rows:
        for tag, value in scalars.items():
            if (name := measured_name(tag, monitor)) is not None and not derived(name):
                values.setdefault(step, {})[name] = value
            elif is_epoch(tag):
                epochs[step] = int(value)
    if not values:
        raise ValueError(f"{path} holds no scalars under {monitor}/: not monitored, or nothing measured yet")
    measurements = [
        Measurement(epochs.get(step, -1), step, {name: numbers[name] for name in sorted(numbers, key=_natural)})
        for step, numbers in sorted((step, _without_means(numbers)) for step, numbers in values.items())
    ]
    return dict(metadata), measurements


def _without_means(numbers: Mapping[str, float]) -> dict[str, float]:
    """Without the means over layers, which have the name of a measure of layers and no layer."""
    keys = {name: parse_name(name) for name in numbers}
    of_layers = {(key.measure, key.condition) for key in keys.values() if key.layer is not None}
    return {
        name: numbers[name]
        for name, key in keys.items()
        if key.layer is not None or (key.measure, key.condition) not in of_layers
    }


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key under which layer.2 stands before layer.10."""
    parts = re.split("([0-9]{1,18})", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
