"""Runs to log and to read back, with names chosen to do harm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from lightning_sim.measures import MEASURES
from lightning_sim.record import Measurement, SimilarityHistory, SimilarityMatrix

HOSTILE = (
    "<script>alert(1)</script>",
    "../../x",
    "encoder/layer.2",
    "$\\frac{$",
    "_hidden",
    "a\nb",
    'quote"\\',
)


def example_history(
    epochs: int = 3, layers: tuple[str, ...] = ("conv", "fc"), matrices: bool = True, seed: int = 0
) -> SimilarityHistory:
    """Three measures of every layer, one of the outputs with a NaN in it, and a matrix per epoch."""
    random = np.random.default_rng(seed)
    scales = {name: MEASURES[name].scale.to_state() for name in ("cka", "nbs", "wcka", "jsd")}
    counterparts = {layer: f"their {layer}" for layer in layers}
    history = SimilarityHistory({"run": "example", "layers": counterparts, "scales": scales})
    for epoch in range(epochs):
        values = {
            f"{measure}/{kind}/{layer}": random.uniform(-0.1, 1)
            for measure, kind in (("cka", "features"), ("nbs", "features"), ("wcka", "weights"))
            for layer in layers
        }
        values["jsd"] = math.nan if epoch == 1 else random.uniform(0, 0.7)
        cells = random.uniform(0, 1, (len(layers), len(layers)))
        matrix = SimilarityMatrix(
            "cka", "features", layers, tuple(f"their {layer}" for layer in layers), cells
        )
        history.append(Measurement(epoch, 10 * epoch + 9, values, (matrix,) if matrices else ()))
    return history


def log_scalars(logger: Any, history: SimilarityHistory) -> None:
    """What Lightning does with the scalars of a callback."""
    for measurement in history.measurements:
        scalars = {f"similarity/{name}": value for name, value in measurement.values.items()}
        logger.log_metrics({**scalars, "val_loss": 1.0, "epoch": measurement.epoch}, step=measurement.step)
        logger.save()


def table(history: SimilarityHistory, *, without: tuple[str, ...] = ()) -> dict[tuple[Any, ...], np.float32]:
    """The tidy rows as {everything else: value}, so that their order does not count."""
    rows = history.to_records()
    keys = [key for key in rows[0] if key not in ("value", *without)]
    found = {tuple(row[key] for key in keys): np.float32(row["value"]) for row in rows}
    assert len(found) == len(rows)
    return found


def files_below(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}
