"""Similarity of saved sketches: layers with layers, epochs with epochs, runs with runs."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_sim._arguments import listed
from lightning_sim._checks import check_choice
from lightning_sim.compare.sources import SketchedRun
from lightning_sim.measures import MEASURES, LayerMeasure, Pairs
from lightning_sim.measures.layers import Beside, Place, chance_deviations
from lightning_sim.record import SimilarityMatrix
from lightning_sim.sketch import Sketch
from lightning_sim.sketch.sketch_set import SketchSet

__all__ = ["LAYER_MEASURES", "epoch_matrix", "layer_matrix", "run_rows", "tidy"]

LAYER_MEASURES = {name: measure for name, measure in MEASURES.items() if isinstance(measure, LayerMeasure)}


def layer_matrix(
    a: SketchSet,
    b: SketchSet,
    measure: str = "cka",
    *,
    representation: str = "features",
    estimator: str = "unbiased",
) -> SimilarityMatrix:
    """Every layer of one network (rows) with every layer of another (columns).

    Args:
        a: sketches of one network.
        b: sketches of the other, on the same probe; the architectures may differ.
        measure: name of a measure of layers, ``"cka"`` or ``"procrustes_distance"`` for instance.
        representation: which sketches.
        estimator: of CKA, ``"unbiased"`` or ``"biased"``.

    Returns:
        The matrix; NaN, after a warning that says why, where two layers have no similarity.

    Raises:
        ValueError: when the sketches are of different probes, seeds or sizes, all of different samples, or there are
            none of this representation.

    Example:
        >>> import torch
        >>> from lightning_sim import Sketch
        >>> from lightning_sim.compare import layer_matrix, tidy
        >>> from lightning_sim.sketch import SketchSet
        >>> def sketched(x):
        ...     sketch = Sketch(num_buckets=64, num_projections=16)
        ...     sketch.update(x, torch.arange(len(x)))
        ...     return sketch
        >>> x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
        >>> teacher = SketchSet({"features": {"conv": sketched(x), "head": sketched(x[:, :1])}})
        >>> student = SketchSet({"features": {"layer1": sketched(3 * x + 1)}})
        >>> matrix = layer_matrix(student, teacher)
        >>> {row["b"]: round(row["value"], 2) for row in tidy(matrix)}
        {'conv': 1.0, 'head': 0.24}
    """
    a.require_comparable(b, representation)
    return _matrix(a.of(representation), b.of(representation), measure, representation, estimator)


def epoch_matrix(
    a: SketchedRun,
    b: SketchedRun,
    layer: str,
    measure: str = "cka",
    *,
    representation: str = "features",
    estimator: str = "unbiased",
) -> SimilarityMatrix:
    """One layer at every saved epoch of one run (rows) with the same layer at every epoch of another (columns).

    Args:
        a: a run.
        b: another, or the same, which shows when the layer stopped changing.
        layer: its name in both.
        measure: as in `layer_matrix`.
        representation: as in `layer_matrix`.
        estimator: as in `layer_matrix`.

    Raises:
        ValueError: as for `layer_matrix`; when a run has no such layer, with those that it has.
    """
    rows, probe = _over_epochs(a, layer, representation)
    columns, other_probe = (rows, probe) if b == a else _over_epochs(b, layer, representation)
    probe.require_comparable(other_probe, representation)
    return _matrix(rows, columns, measure, representation, estimator)


def run_rows(
    runs: Mapping[str, SketchSet],
    measure: str = "cka",
    *,
    layer: str | None = None,
    representation: str = "features",
    estimator: str = "unbiased",
) -> list[dict[str, Any]]:
    """Every pair of runs, layer by layer, as rows for a table.

    Args:
        runs: name -> its sketches.
        measure: as in `layer_matrix`.
        layer: only this one; None takes the layers that both have by the same name.
        representation: as in `layer_matrix`.
        estimator: as in `layer_matrix`.

    Returns:
        Dictionaries with the keys ``a``, ``b`` (runs), ``measure``, ``representation``, ``layer`` and ``value``; both
        orders of a pair, and each run with itself. NaN, after a warning that says why, where there is no similarity.

    Raises:
        ValueError: as for `layer_matrix`; when two runs share no layer.
    """
    rows = []
    for (first, mine), (second, theirs) in itertools.product(runs.items(), repeat=2):
        mine.require_comparable(theirs, representation)
        held, other = mine.of(representation), theirs.of(representation)
        layers = [name for name in held if name in other] if layer is None else [layer]
        sides = ((held, first), (other, second))
        if not layers:
            raise ValueError(f"{first} and {second} have no layer of the same name: {listed(held)}; {listed(other)}")
        _require_common_samples(*([_layer(side, name, run) for name in layers] for side, run in sides))
        for name in layers:
            row, column = ({f"{name} of {run}": side[name]} for side, run in sides)
            value, _ = _similarities(row, column, measure, representation, estimator)
            rows.append(
                {
                    "a": first,
                    "b": second,
                    "measure": measure,
                    "representation": representation,
                    "layer": name,
                    "value": float(value[0, 0]),
                }
            )
    return rows


def run_matrix(rows: Sequence[Mapping[str, Any]]) -> SimilarityMatrix:
    """The rows of `run_rows` as a matrix of runs with runs: the mean over the layers that a pair has a value for."""
    names = tuple(dict.fromkeys(row["a"] for row in rows))
    values = np.full((len(names), len(names)), np.nan)
    for (i, a), (j, b) in itertools.product(enumerate(names), repeat=2):
        found = [row["value"] for row in rows if (row["a"], row["b"]) == (a, b) and not np.isnan(row["value"])]
        values[i, j] = np.mean(found) if found else np.nan
    return SimilarityMatrix(rows[0]["measure"], rows[0]["representation"], names, names, values)


def tidy(matrix: SimilarityMatrix) -> list[dict[str, Any]]:
    """One dictionary per cell: ``a``, ``b``, ``measure``, ``representation`` and ``value``."""
    return [
        {
            "a": a,
            "b": b,
            "measure": matrix.measure,
            "representation": matrix.representation,
            "value": float(matrix.values[row, column]),
        }
        for row, a in enumerate(matrix.rows)
        for column, b in enumerate(matrix.columns)
    ]


def _matrix(
    rows: Mapping[str, Sketch], columns: Mapping[str, Sketch], measure: str, representation: str, estimator: str
) -> SimilarityMatrix:
    _require_common_samples(rows.values(), columns.values())
    values, chance = _similarities(rows, columns, measure, representation, estimator)
    return SimilarityMatrix(measure, representation, tuple(rows), tuple(columns), values, chance_deviations=chance)


def _similarities(
    rows: Mapping[str, Sketch], columns: Mapping[str, Sketch], measure: str, representation: str, estimator: str
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """(A, B) and their deviations by chance, after a warning for each layer and reason why one is NaN."""
    check_choice(measure, "measure", tuple(LAYER_MEASURES))
    found, pairs = LAYER_MEASURES[measure], Pairs({}, (representation,), estimator)
    xs, ys = ([found.prepare(sketch) for sketch in side.values()] for side in (rows, columns))
    ys = xs if rows is columns else ys
    beside: Mapping[Place, Beside] = {}
    if found.every_pair:
        values, problems, beside = found.together(xs, ys, [(0, 0)], pairs)
    else:
        values, problems = found.similarities(xs, ys, pairs)
    said: dict[str, None] = {}
    for (i, j), problem in problems.items():
        sides = (list(rows)[i], xs[i]), (list(columns)[j], ys[j])
        own = [f"{name} {reason}" for name, side in sides if (reason := found.layer_problem(side, pairs)) is not None]
        said |= dict.fromkeys(own or [f"{sides[0][0]} {problem}"])
    for problem in said:
        warnings.warn(f"{problem}; its similarity is NaN", UserWarning, stacklevel=4)
    return values, chance_deviations(values.shape, beside)


def _require_common_samples(rows: Iterable[Sketch], columns: Iterable[Sketch]) -> None:
    """Raise the reason, if no sketch of one side has the samples of one of the other."""
    mine, theirs = ({(sketch.count, sketch.fingerprint): sketch for sketch in side} for side in (rows, columns))
    if not mine.keys() & theirs.keys():
        next(iter(mine.values())).require_comparable(next(iter(theirs.values())))


def _over_epochs(run: SketchedRun, layer: str, representation: str) -> tuple[dict[str, Sketch], SketchSet]:
    """Name of the epoch -> sketch, and a set without sketches that says of what they are."""
    found: dict[str, Sketch] = {}
    first: SketchSet | None = None
    for name, held in run.by_epoch():
        first = first or SketchSet({}, probe=held.probe, gradients=held.gradients)
        first.require_comparable(held, representation)
        found[name] = _layer(held.of(representation), layer, f"{run.name}, {name}")
    return found, first or SketchSet({})


def _layer(sketches: Mapping[str, Sketch], layer: str, where: str) -> Sketch:
    if layer not in sketches:
        raise ValueError(f"there is no layer {layer!r} in {where}; it has {listed(sketches)}")
    return sketches[layer]
