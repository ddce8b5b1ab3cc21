"""Comparing two snapshots: similarity of layers, of outputs and of weights, as one measurement's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_sim._measurement import SimilarityMatrix
from lightning_sim.functional import (
    jensen_shannon_divergence,
    prediction_agreement,
    rank_correlation,
    weight_centered_kernel_alignment,
)
from lightning_sim.probe.snapshot import Snapshot
from lightning_sim.sketch import Sketch, centered_kernel_alignment_matrix

__all__ = ["LAYER_MEASURES", "OUTPUT_MEASURES", "compare_layers", "compare_outputs", "compare_weights"]

LAYER_MEASURES = ("cka", "nbs")
OUTPUT_MEASURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "agreement": prediction_agreement,
    "jsd": jensen_shannon_divergence,
    "rank_correlation": rank_correlation,
}


def compare_layers(
    current: Snapshot,
    reference: Snapshot,
    pairs: Mapping[str, str],
    measures: Sequence[str],
    *,
    representation: str = "features",
    estimator: str = "unbiased",
) -> tuple[dict[str, float], list[SimilarityMatrix], dict[str, str]]:
    """Every layer against its counterpart, and, for CKA, every layer against every layer of the reference.

    Args:
        current: the network.
        reference: what it is compared with, on the same probe.
        pairs: layer of the network -> layer of the reference.
        measures: of ``"cka"`` and ``"nbs"``.
        representation: under whose name the values go.
        estimator: of CKA.

    Returns:
        ``<measure>/<representation>/<layer>`` -> value, NaN where it could not be computed; the matrices; and
        layer -> why a value could not be computed.
    """
    rows, columns = list(pairs), list(dict.fromkeys(pairs.values()))
    problems = {layer: f"{problem} (in the reference)" for layer, problem in _problems(reference, columns).items()}
    problems = {mine: problems[theirs] for mine, theirs in pairs.items() if theirs in problems}
    problems |= _problems(current, rows)
    values: dict[str, float] = {}
    matrices = []
    if "cka" in measures:
        matrix = _cka_matrix(current, reference, rows, columns, estimator)
        matrices.append(SimilarityMatrix("cka", representation, tuple(rows), tuple(columns), matrix))
        for index, (mine, theirs) in enumerate(pairs.items()):
            values[f"cka/{representation}/{mine}"] = float(matrix[index, columns.index(theirs)])
    if "nbs" in measures:
        for mine, theirs in pairs.items():
            usable = mine in current.sketches and theirs in reference.sketches
            values[f"nbs/{representation}/{mine}"] = (
                float(current.sketches[mine].nbs(reference.sketches[theirs])) if usable else float("nan")
            )
    return values, matrices, problems


def compare_outputs(
    logits: Tensor | None, reference_logits: Tensor | None, measures: Sequence[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Measure -> similarity of the outputs (samples, classes); and measure -> why it is NaN."""
    values, problems = {}, {}
    for measure in measures:
        if logits is None or reference_logits is None:
            values[measure] = float("nan")
            continue
        try:
            values[measure] = float(OUTPUT_MEASURES[measure](logits, reference_logits))
        except ValueError as error:
            values[measure], problems[measure] = float("nan"), str(error)
    return values, problems


def compare_weights(
    current: Snapshot, reference: Snapshot
) -> tuple[dict[str, float], list[SimilarityMatrix], dict[str, str]]:
    """wCKA of two chains of dense layers: ``wcka/weights/<layer>`` for layers of the same name, and the matrix."""
    mine, theirs = current.chain, reference.chain
    if mine is None or theirs is None:
        return {}, [], {}
    names = [f"wcka/weights/{layer}" for layer in mine if layer in theirs]
    try:
        values = weight_centered_kernel_alignment(list(mine.values()), list(theirs.values()))
    except ValueError as error:
        return dict.fromkeys(names, float("nan")), [], {"wcka": str(error)}
    matrix = SimilarityMatrix("wcka", "weights", tuple(mine), tuple(theirs), values.float().numpy())
    positions = {layer: index for index, layer in enumerate(theirs)}
    return (
        {
            f"wcka/weights/{layer}": float(values[row, positions[layer]])
            for row, layer in enumerate(mine)
            if layer in positions
        },
        [matrix],
        {},
    )


def _cka_matrix(
    current: Snapshot, reference: Snapshot, rows: Sequence[str], columns: Sequence[str], estimator: str
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    matrix = np.full((len(rows), len(columns)), np.nan, dtype=np.float32)
    mine = [index for index, layer in enumerate(rows) if layer in current.sketches]
    theirs = [index for index, layer in enumerate(columns) if layer in reference.sketches]
    if mine and theirs:
        values = centered_kernel_alignment_matrix(
            [current.sketches[rows[index]] for index in mine],
            [reference.sketches[columns[index]] for index in theirs],
            estimator=estimator,
        )
        matrix[np.ix_(mine, theirs)] = values.to("cpu", torch.float32).numpy()
    return matrix


def _problems(snapshot: Snapshot, layers: Sequence[str]) -> dict[str, str]:
    found = {layer: snapshot.problems[layer] for layer in layers if layer in snapshot.problems}
    for layer in layers:
        sketch: Sketch | None = snapshot.sketches.get(layer)
        if layer not in found and (problem := sketch.problem() if sketch is not None else "holds no samples"):
            found[layer] = problem
    return found
