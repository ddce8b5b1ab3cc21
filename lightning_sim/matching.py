"""Pairing the layers of two architectures by how similar they are: the best match that keeps their order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_sim.measures import MEASURES, LayerMeasure, Pairs
from lightning_sim.probe import Pairing, Snapshot

__all__ = ["best_monotone_match", "match_layers"]


def match_layers(mine: Snapshot, theirs: Snapshot, representation: str, estimator: str) -> Pairing:
    """Every layer with the one of the reference that the best monotone match of their CKA gives it.

    Args:
        mine: the network on the whole probe.
        theirs: the reference.
        representation: whose CKA is taken.
        estimator: of CKA.

    Raises:
        ValueError: when no layer of one of them can be compared.
    """
    rows, columns = (
        [layer for layer in side.order or side.of(representation) if side.problem_of(layer, representation) is None]
        for side in (mine, theirs)
    )
    if not rows or not columns:
        raise ValueError('layers="match" found no layer to compare in ' + ("the reference" if rows else "the network"))
    measure = MEASURES["cka"]
    assert isinstance(measure, LayerMeasure)
    summaries = (
        [mine.summary(row, representation) for row in rows],
        [theirs.summary(c, representation) for c in columns],
    )
    values, _ = measure.similarities(*summaries, Pairs({}, (representation,), estimator))
    match = best_monotone_match(np.nan_to_num(values, nan=-1.0))
    return Pairing({row: columns[match[place]] for place, row in enumerate(rows)}, how="match")


def best_monotone_match(values: NDArray[np.float64]) -> list[int]:
    """For every row a column, in their order, so that the sum of the values is largest.

    Every row has a column of its own; where there are more rows than columns, every column has a row.

    Args:
        values: (rows, columns).

    Example:
        >>> import numpy as np
        >>> best_monotone_match(np.array([[0.9, 0.8, 0.2], [0.8, 0.7, 0.6]]))
        [0, 1]
        >>> best_monotone_match(np.array([[0.9, 0.8], [0.8, 0.9], [0.1, 0.2]]))
        [0, 1, 1]
    """
    rows, columns = values.shape
    distinct = rows <= columns
    totals = np.full((rows, columns), -np.inf)
    totals[0, : columns if distinct else 1] = values[0, : columns if distinct else 1]
    for row in range(1, rows):
        before = np.full(columns, -np.inf)
        before[1:] = (np.maximum.accumulate(totals[row - 1]) if distinct else totals[row - 1])[:-1]
        totals[row] = values[row] + (before if distinct else np.maximum(before, totals[row - 1]))
    match = [int(np.argmax(totals[-1])) if distinct else columns - 1]
    for total in totals[-2::-1]:
        low, high = (0, match[0]) if distinct else (max(match[0] - 1, 0), match[0] + 1)
        match.insert(0, low + int(np.argmax(total[low:high])))
    return match
