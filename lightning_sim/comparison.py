"""Snapshots as one measurement's numbers: similarity of two, by layers, outputs and weights, and what describes one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
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
from lightning_sim.sketch import mean_embedding_norm
from lightning_sim.sketch.pairs import Layer, layer_problem, pair_problem, similarity_matrix

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
    mine, theirs = (_layers(side, names, representation) for side, names in ((current, rows), (reference, columns)))
    values: dict[str, float] = {}
    matrices = []
    problems = {
        name: f"{problem} (in the reference)"
        for name, problem in _problems(reference, columns, representation, measures, estimator).items()
    }
    problems |= _problems(current, rows, representation, measures, estimator)
    for measure in measures:
        if measure == "cka":
            matrix = similarity_matrix(mine, theirs, measure, estimator)
            own = [matrix[row, columns.index(name)] for row, name in enumerate(pairs.values())]
            matrices.append(
                SimilarityMatrix(measure, representation, tuple(rows), tuple(columns), matrix.float().numpy())
            )
        else:
            own = [
                similarity_matrix([layer], [theirs[columns.index(name)]], measure)[0, 0]
                for layer, name in zip(mine, pairs.values(), strict=True)
            ]
        for layer, row, value in zip(mine, rows, own, strict=True):
            values[f"{measure}/{representation}/{row}"] = float(value)
            other = theirs[columns.index(pairs[row])]
            if bool(value.isnan()) and layer is not None and other is not None:
                problem = pair_problem(layer, other, measure, estimator, name=f"{pairs[row]} of the reference")
                problems |= {row: problem} if problem is not None else {}
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


def _layers(snapshot: Snapshot, layers: Sequence[str], representation: str) -> list[Layer | None]:
    """What of each layer was sketched; None where nothing was."""
    names = sketched([representation])
    return [
        tuple(snapshot.of(name)[layer] for name in names) if all(layer in snapshot.of(name) for name in names) else None
        for layer in layers
    ]


def _problems(
    snapshot: Snapshot, layers: Sequence[str], representation: str, measures: Sequence[str], estimator: str
) -> dict[str, str]:
    """Layer, or what of it was sketched -> why no similarity to it has a value."""
    found = {}
    names = sketched([representation])
    measure = "cka" if "cka" in measures and len(names) == 1 else "nbs"  # a transport map has no unbiased CKA
    for layer in layers:
        known = snapshot.problem_of(layer, representation)
        if known is not None:
            found[known[0]] = known[1]
            continue
        for name in names:
            sketch = snapshot.of(name).get(layer)
            problem = "holds no samples" if sketch is None else layer_problem(sketch, measure, estimator)
            if problem is not None:
                found[layer if name == "features" else f"{name} of {layer}"] = problem
    return found
