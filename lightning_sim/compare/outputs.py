"""Similarity of the outputs that were saved with the sketches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from lightning_sim._checks import check_choice
from lightning_sim.measures import MEASURES, OutputFunction
from lightning_sim.measures.calling import called
from lightning_sim.record import SimilarityMatrix
from lightning_sim.sketch.sketch_set import SketchSet

__all__ = ["OUTPUT_MEASURES", "output_matrix"]

OUTPUT_MEASURES = {name: measure for name, measure in MEASURES.items() if isinstance(measure, OutputFunction)}


def output_matrix(rows: Mapping[str, SketchSet], columns: Mapping[str, SketchSet], measure: str) -> SimilarityMatrix:
    """The outputs of each network, or of one at each epoch, with those of others on the same probe.

    Args:
        rows: name -> what was saved.
        columns: name -> what was saved.
        measure: ``"agreement"``, ``"jsd"`` or ``"rank_correlation"``.

    Raises:
        ValueError: when outputs were not saved, have different numbers of samples or classes, or are known to be of
            different probes.

    Example:
        >>> import torch
        >>> from lightning_sim.compare import output_matrix
        >>> from lightning_sim.sketch import SketchSet
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.0, 5.0]])
        >>> a, b = SketchSet({}, logits=logits), SketchSet({}, logits=logits.roll(1, 0))
        >>> output_matrix({"a": a}, {"a": a, "b": b}, "agreement").values
        array([[1., 0.]], dtype=float32)
    """
    check_choice(measure, "measure", tuple(OUTPUT_MEASURES))
    values = np.full((len(rows), len(columns)), np.nan)
    for i, (name, mine) in enumerate(rows.items()):
        for j, (other, theirs) in enumerate(columns.items()):
            mine.require_comparable(theirs)
            logits = _logits(mine, name), _logits(theirs, other)
            if logits[0].shape != logits[1].shape:
                shapes = " and ".join(str(tuple(part.shape)) for part in logits)
                raise ValueError(f"outputs of different shapes, {shapes}, of {name} and {other}")
            values[i, j] = called(OUTPUT_MEASURES[measure].function, *logits)[0]
    return SimilarityMatrix(measure, "outputs", tuple(rows), tuple(columns), values)


def _logits(held: SketchSet, name: str) -> Tensor:
    if held.logits is None:
        raise ValueError(
            f"no outputs were saved with the sketches of {name}; a SimilarityMonitor(save_sketches=True) saves them "
            "where a network gives (samples, classes)"
        )
    return held.logits
