"""Similarities of the layers of two networks, each by itself: one that has none leaves the others as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sim.sketch.similarity import centered_kernel_alignment_matrix
from lightning_sim.sketch.sketch import Sketch
from lightning_sim.sketch.tang2020 import Tang2020Sketch
from lightning_sim.sketch.transport_map import transport_map_matrix

__all__ = ["Layer", "layer_problem", "pair_problem", "similarity_matrix"]

Layer = tuple[Sketch, ...]  # one sketch, or those of features and gradients, of whose transport map the similarity is


def similarity_matrix(
    rows: Sequence[Layer | None], columns: Sequence[Layer | None], measure: str, estimator: str = "unbiased"
) -> Tensor:
    """Every layer of one network with every layer of another.

    Args:
        rows: A layers; None where there is no sketch.
        columns: B layers.
        measure: ``"cka"`` or ``"nbs"``.
        estimator: of CKA.

    Returns:
        (A, B) in float64 on the CPU; NaN where `layer_problem` of a side or `pair_problem` of both says why.

    Raises:
        ValueError: when sketches differ in seed, sizes or kind.
    """
    values = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64, device="cpu")
    groups: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for side, layers in enumerate((rows, columns)):
        for index, layer in enumerate(layers):
            if layer is not None and _too_few(layer) is None and len({_samples(sketch) for sketch in layer}) == 1:
                groups.setdefault(_samples(layer[0]), ([], []))[side].append(index)
    for mine, theirs in groups.values():
        found = [layer for index in mine if (layer := rows[index]) is not None]
        others = [layer for index in theirs if (layer := columns[index]) is not None]
        if found and others:
            similarities = _similarities(found, others, measure, estimator)
            places = (torch.tensor(indices, device="cpu") for indices in (mine, theirs))
            values[torch.meshgrid(*places, indexing="ij")] = similarities.to("cpu", torch.float64)
    return values


def layer_problem(sketch: Sketch, measure: str, estimator: str = "unbiased") -> str | None:
    """Why no similarity with this sketch has a value, in words, or None."""
    few = _too_few([sketch])
    if few is not None or measure != "cka" or isinstance(sketch, Tang2020Sketch):
        return few or sketch.problem()
    return sketch.cka_problem(estimator)


def pair_problem(layer: Layer, other: Layer, measure: str, estimator: str = "unbiased", *, name: str) -> str | None:
    """Why two layers have no similarity, `name` being the other, in words; None where a side has a problem itself."""
    kind = measure if len(layer) == 1 else "nbs"
    if any(layer_problem(sketch, kind, estimator) is not None for sketch in (*layer, *other)):
        return None
    for sketch, theirs in ((a, b) for a in layer for b in other):
        if _samples(sketch) != _samples(theirs):
            return (
                f"is of other samples than {name} ({sketch.count} and {theirs.count} of them), so that the two cannot "
                "be compared"
            )
    if len(layer) == 2:
        return f"has a transport map without variance, or {name} has"
    return (
        f"has a similarity to {name} that is further out of its range than the noise of their folds explains; use more "
        "`num_projections`"
    )


def _samples(sketch: Sketch) -> tuple[int, int]:
    return sketch.count, sketch.fingerprint


def _too_few(layer: Sequence[Sketch]) -> str | None:
    fewest = min(sketch.count for sketch in layer)
    return f"holds {fewest} samples, and a comparison needs at least 4" if fewest < 4 else None


def _similarities(rows: Sequence[Layer], columns: Sequence[Layer], measure: str, estimator: str) -> Tensor:
    if len(rows[0]) == 2:
        return transport_map_matrix([(f, g) for f, g in rows], [(f, g) for f, g in columns], measure)
    mine, theirs = ([sketch for (sketch,) in side] for side in (rows, columns))
    if measure == "cka" and not isinstance(mine[0], Tang2020Sketch):
        return centered_kernel_alignment_matrix(mine, theirs, estimator=estimator)
    same = mine == theirs  # a matrix of a network with itself is symmetric, and one value costs a decomposition
    values = torch.zeros(len(mine), len(theirs), dtype=torch.float64, device="cpu")
    for i, a in enumerate(mine):
        for j, b in enumerate(theirs):
            values[i, j] = values[j, i] if same and j < i else float(getattr(a, measure)(b))
    return values
