"""Measures of layers: each layer of the network against its counterpart, or every layer against every layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_sim.measures.calling import called, function_name
from lightning_sim.measures.measure import Measure, Pairs, Side, Values
from lightning_sim.probe.representations import Summary
from lightning_sim.record.key import Key
from lightning_sim.record.measurement import SimilarityMatrix
from lightning_sim.record.scale import Scale
from lightning_sim.sketch import Tang2020Sketch

__all__ = ["Beside", "LayerFunction", "LayerMeasure", "Place", "chance_deviations"]

Place = tuple[int, int]
Beside = dict[str, Any]  # statistics of one value by name, and its "note"


class LayerMeasure(Measure):
    """A measure of two layers on the same samples, from their sketches.

    Attributes:
        every_pair: whether it also gives the matrix of every layer with every layer of the reference.
    """

    every_pair = False

    def prepare(self, summary: Any) -> Any:
        """What `similarity` takes of a layer, made once for all pairs from its sketch."""
        return summary

    def layer_problem(self, summary: Any, pairs: Pairs) -> str | None:
        """Why no similarity with this layer has a value, where that is known of the layer alone; else None."""
        return None

    def similarity(self, x: Any, y: Any, pairs: Pairs) -> tuple[float, str | None]:
        """Of a layer and one of the reference; and why it is NaN, if it is."""
        raise NotImplementedError

    def similarities(
        self, xs: Sequence[Any], ys: Sequence[Any], pairs: Pairs
    ) -> tuple[NDArray[np.float64], dict[tuple[int, int], str]]:
        """Of every x with every y (xs, ys); and (row, column) -> why it is NaN."""
        values, problems = np.full((len(xs), len(ys)), np.nan), {}
        for i, x in enumerate(xs):
            for j, y in enumerate(ys):
                values[i, j], problem = self.similarity(x, y, pairs)
                if problem is not None:
                    problems[i, j] = problem
        return values, problems

    def together(
        self, xs: Sequence[Any], ys: Sequence[Any], counterparts: Sequence[Place], pairs: Pairs
    ) -> tuple[NDArray[np.float64], dict[Place, str], dict[Place, Beside]]:
        """Values (xs, ys), of the counterparts alone unless `every_pair`; why they are NaN; what stands beside them."""
        if self.every_pair:
            return *self.similarities(xs, ys, pairs), {}
        values, problems = np.full((len(xs), len(ys)), np.nan), {}
        for i, j in counterparts:
            values[i, j], problem = self.similarity(xs[i], ys[j], pairs)
            if problem is not None:
                problems[i, j] = problem
        return values, problems, {}

    def keys(self, pairs: Pairs) -> list[Key]:
        """Every layer in every representation."""
        return [Key(self.name, *kind) for kind in itertools.product(pairs.representations, pairs.layers)]

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """Every layer with its counterpart, in every representation; each fails alone."""
        found = Values()
        for representation in pairs.representations:
            self._compare(mine, theirs, pairs, representation, found)
        return found

    def _compare(self, mine: Side, theirs: Side, pairs: Pairs, representation: str, found: Values) -> None:
        rows, columns = list(pairs.layers), list(dict.fromkeys(pairs.layers.values()))
        xs, x_problems = self._prepared(mine, rows, representation, "")
        ys, y_problems = self._prepared(theirs, columns, representation, " (in the reference)")
        matrix = np.full((len(rows), len(columns)), np.nan)
        counterparts = [(row, columns.index(counterpart)) for row, counterpart in enumerate(pairs.layers.values())]
        reasons: dict[Place, str] = {}
        beside: dict[Place, Beside] = {}
        if xs and ys:
            i, j = list(xs), list(ys)
            wanted = [(i.index(row), j.index(column)) for row, column in counterparts if row in xs and column in ys]
            block, of_block, beside_block = self.together(list(xs.values()), list(ys.values()), wanted, pairs)
            matrix[np.ix_(i, j)] = block
            reasons = {(i[row], j[column]): reason for (row, column), reason in of_block.items()}
            beside = {(i[row], j[column]): statistics for (row, column), statistics in beside_block.items()}
        for layer, (row, column) in zip(pairs.layers, counterparts, strict=True):
            key, reason = Key(self.name, representation, layer), x_problems.get(row) or y_problems.get(column)
            statistics = dict(beside.get((row, column), {}))
            if (note := statistics.pop("note", None)) is not None:
                found.notes[key] = str(note)
            found.add(key, float(matrix[row, column]), reason or reasons.get((row, column)), statistics)
        if self.every_pair:
            sides, chance = (tuple(rows), tuple(columns)), chance_deviations(matrix.shape, beside)
            found.matrices.append(SimilarityMatrix(self.name, representation, *sides, matrix, chance_deviations=chance))

    def _prepared(
        self, side: Side, layers: Sequence[str], representation: str, where: str
    ) -> tuple[dict[int, Any], dict[int, str]]:
        """Place of the layer -> what `similarity` takes; and place -> why there is nothing."""
        found, problems = {}, {}
        for place, layer in enumerate(layers):
            problem = side.snapshot.problem_of(layer, representation)
            if problem is None:
                try:
                    found[place] = self.prepare(side.snapshot.summary(layer, representation))
                except ValueError as error:
                    problem = str(error)
            if problem is not None:
                problems[place] = problem + where
        return found, problems


def chance_deviations(shape: tuple[int, ...], beside: Mapping[Place, Beside]) -> NDArray[np.float64] | None:
    """Of the cells of a matrix, where any is known."""
    found = np.full(shape, np.nan)
    for place, statistics in beside.items():
        found[place] = statistics.get("chance_deviation", np.nan)
    return None if np.isnan(found).all() else found


class LayerFunction(LayerMeasure):
    """A function of two feature matrices as a measure.

    It is called with the features that the sketches hold, exact for layers up to `num_projections` wide; of wider ones
    with signed folds of that width, whose inner products are right on average. That needs a bucket for each sample.

    Args:
        function: ``function(x, y)`` of ``x (n, p)`` and ``y (n, q)``, the same samples row by row, gives a number, or a
            number and its standard error (:class:`lightning_sim.functional.Estimate`); or a torchmetrics ``Metric``
            with ``update(x, y)``.
        name: first part of the logged names; the function's own if None.
        scale: how its values are to be read.
        every_pair: whether to call it for every layer with every layer of the reference, for the matrix.

    Example:
        >>> import torch
        >>> from lightning_sim.measures import LayerFunction, Scale
        >>> def same_nearest_neighbor(x, y):
        ...     nearest = [torch.cdist(z, z).fill_diagonal_(torch.inf).argmin(1) for z in (x, y)]
        ...     return (nearest[0] == nearest[1]).float().mean()
        >>> LayerFunction(same_nearest_neighbor, scale=Scale(low=0, high=1, same=1)).name
        'same_nearest_neighbor'
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], object],
        name: str | None = None,
        scale: Scale | None = None,
        every_pair: bool = False,
    ) -> None:
        self.function = function
        self.name = function_name(function, name)
        self.scale = scale or Scale()
        self.every_pair = every_pair

    def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
        """There must be a bucket for each sample."""
        sketch, samples = mine.runner.make_sketch(), mine.runner.probe.size
        reason = None
        if samples > sketch.num_buckets:
            reason = (
                f"{samples} samples share {sketch.num_buckets} buckets: set "
                f"num_buckets={1 << (samples - 1).bit_length()}, or num_samples to at most {sketch.num_buckets}"
            )
        elif mine.runner.pool == "tokens":
            reason = 'pool="tokens" has positions share buckets: use pool="mean", "first", "last" or "flatten"'
        elif "transport_map" in pairs.representations:
            reason = 'the representation "transport_map" is of none: leave it out'
        elif isinstance(sketch, Tang2020Sketch):
            reason = 'sketch="tang2020" does not hold them: leave it out'
        return reason and f"it is a function of single samples, and {reason}"

    def prepare(self, summary: Summary) -> Tensor:
        """The samples' features."""
        return summary.rows()

    def similarity(self, x: Tensor, y: Tensor, pairs: Pairs) -> tuple[float, str | None]:
        """What the function gives."""
        return called(self.function, x, y)[:2]

    def together(
        self, xs: Sequence[Tensor], ys: Sequence[Tensor], counterparts: Sequence[Place], pairs: Pairs
    ) -> tuple[NDArray[np.float64], dict[Place, str], dict[Place, Beside]]:
        """With the standard errors that the function gives."""
        values, problems, beside = np.full((len(xs), len(ys)), np.nan), {}, {}
        for i, j in np.ndindex(values.shape) if self.every_pair else counterparts:
            values[i, j], problem, beside[i, j] = called(self.function, xs[i], ys[j])
            if problem is not None:
                problems[i, j] = problem
        return values, problems, beside
