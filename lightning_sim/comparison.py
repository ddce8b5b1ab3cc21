"""Snapshots as one measurement's numbers: similarity of two, by layers, outputs and weights, and what describes one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

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
from lightning_sim.probe.representations import sketched
from lightning_sim.probe.snapshot import Snapshot
from lightning_sim.sketch import (
    Sketch,
    Tang2020Sketch,
    centered_kernel_alignment_matrix,
    mean_embedding_norm,
    transport_map_matrix,
)

__all__ = [
    "LAYER_MEASURES",
    "MEAN_EMBEDDINGS",
    "OUTPUT_MEASURES",
    "compare_layers",
    "compare_outputs",
    "compare_weights",
    "mean_embeddings",
]

LAYER_MEASURES = ("cka", "nbs")
MEAN_EMBEDDINGS: Mapping[str, Literal["diagonal", "frobenius"] | None] = {
    "mean_embedding": None,
    "mean_embedding_diagonal": "diagonal",
    "mean_embedding_frobenius": "frobenius",
}
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
        representation: what of the layers is compared.
        estimator: of CKA.

    Returns:
        ``<measure>/<representation>/<layer>`` -> value, NaN where it could not be computed; the matrices; and
        layer -> why a value could not be computed.
    """
    rows, columns = list(pairs), list(dict.fromkeys(pairs.values()))
    problems = {
        name: f"{problem} (in the reference)" for name, problem in _problems(reference, columns, representation).items()
    }
    problems |= _problems(current, rows, representation)
    values: dict[str, float] = {}
    matrices = []
    if "cka" in measures:
        matrix = _matrix(current, reference, rows, columns, "cka", representation, estimator)
        matrices.append(SimilarityMatrix("cka", representation, tuple(rows), tuple(columns), matrix))
        for index, (mine, theirs) in enumerate(pairs.items()):
            values[f"cka/{representation}/{mine}"] = float(matrix[index, columns.index(theirs)])
    if "nbs" in measures:
        for mine, theirs in pairs.items():
            value = _matrix(current, reference, [mine], [theirs], "nbs", representation, estimator)
            values[f"nbs/{representation}/{mine}"] = float(value[0, 0])
    return values, matrices, problems


def mean_embeddings(
    current: Snapshot, layers: Sequence[str], representation: str = "features"
) -> tuple[dict[str, float], dict[str, str]]:
    """The norms of every layer's kernel mean embedding, which no reference is needed for.

    Returns:
        ``<name>/<representation>/<layer>`` -> value for the names `MEAN_EMBEDDINGS`; and layer -> why it is NaN.
    """
    values: dict[str, float] = {}
    problems: dict[str, str] = {}
    for layer in layers:
        sketch = current.of(representation).get(layer)
        known = current.problem_of(layer, representation)
        for name, normalization in MEAN_EMBEDDINGS.items():
            value = math.nan
            if known is None and sketch is not None:
                value = float(mean_embedding_norm(sketch, normalization=normalization))
            values[f"{name}/{representation}/{layer}"] = value
            if math.isnan(value):
                reason = sketch.problem() if sketch is not None else "holds no samples"
                zero = (layer, "is zero for every sample" if reason is None or "constant" in reason else reason)
                problems.update([known or zero])
    return values, problems


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
    current: Snapshot, reference: Snapshot, pairs: Mapping[str, str]
) -> tuple[dict[str, float], list[SimilarityMatrix], dict[str, str]]:
    """wCKA of two chains of dense layers: ``wcka/weights/<layer>`` for pairs of layers, and the matrix."""
    mine, theirs = current.chain or {}, reference.chain or {}
    names = [f"wcka/weights/{layer}" for layer in pairs]
    try:
        whole = weight_centered_kernel_alignment(list(mine.values()), list(theirs.values())).float().numpy()
    except ValueError as error:
        return dict.fromkeys(names, float("nan")), [], {"wcka": str(error)}
    rows, columns = list(pairs), list(dict.fromkeys(pairs.values()))
    positions = [list(mine).index(layer) for layer in rows], [list(theirs).index(layer) for layer in columns]
    values = whole[np.ix_(*positions)]
    matrix = SimilarityMatrix("wcka", "weights", tuple(rows), tuple(columns), values)
    found = (float(values[row, columns.index(layer)]) for row, layer in enumerate(pairs.values()))
    return dict(zip(names, found, strict=True)), [matrix], {}


def _matrix(
    current: Snapshot,
    reference: Snapshot,
    rows: Sequence[str],
    columns: Sequence[str],
    measure: str,
    representation: str,
    estimator: str,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(rows, columns), NaN where one side has no sketch."""
    matrix = np.full((len(rows), len(columns)), np.nan, dtype=np.float32)
    names = sketched([representation])
    mine = [index for index, layer in enumerate(rows) if all(layer in current.of(name) for name in names)]
    theirs = [index for index, layer in enumerate(columns) if all(layer in reference.of(name) for name in names)]
    if mine and theirs:
        values = _similarities(
            [tuple(current.of(name)[rows[index]] for name in names) for index in mine],
            [tuple(reference.of(name)[columns[index]] for name in names) for index in theirs],
            measure,
            estimator,
        )
        matrix[np.ix_(mine, theirs)] = values.to("cpu", torch.float32).numpy()
    return matrix


def _similarities(
    rows: Sequence[tuple[Sketch, ...]], columns: Sequence[tuple[Sketch, ...]], measure: str, estimator: str
) -> Tensor:
    if len(rows[0]) == 2:
        return transport_map_matrix([(f, g) for f, g in rows], [(f, g) for f, g in columns], measure)
    mine, theirs = ([sketch for (sketch,) in side] for side in (rows, columns))
    if measure == "cka" and not isinstance(mine[0], Tang2020Sketch):
        return centered_kernel_alignment_matrix(mine, theirs, estimator=estimator)
    values = [[float(getattr(a, measure)(b)) for b in theirs] for a in mine]
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _problems(snapshot: Snapshot, layers: Sequence[str], representation: str) -> dict[str, str]:
    found = {}
    for layer in layers:
        known = snapshot.problem_of(layer, representation)
        if known is not None:
            found[known[0]] = known[1]
            continue
        for name in sketched([representation]):
            sketch = snapshot.of(name).get(layer)
            problem = sketch.problem() if sketch is not None else "holds no samples"
            if problem is not None:
                found[layer if name == "features" else f"{name} of {layer}"] = problem
    return found
