"""The measures that sketches give themselves: CKA and NBS of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_sim.functional.carriers import concentration
from lightning_sim.functional.chance import null_of
from lightning_sim.measures.layers import Beside, LayerMeasure, Place
from lightning_sim.measures.measure import Pairs
from lightning_sim.record.scale import Scale
from lightning_sim.sketch import Sketch, TransportMap
from lightning_sim.sketch.alignment_errors import alignment_null
from lightning_sim.sketch.similarity import alignments

__all__ = ["CenteredKernelAlignmentOfLayers", "NormalizedBuresSimilarityOfLayers"]

_CERTAIN = 8.0  # standard deviations above chance, at which p is below 0.001 however skew that is


class _OfSketches(LayerMeasure):
    """A similarity of two sketches of the same samples; layers of other samples have none with each other."""

    scale = Scale(low=0, high=1, same=1)

    def similarity(self, x: Any, y: Any, pairs: Pairs) -> tuple[float, str | None]:
        """Of one pair."""
        values, problems = self.similarities([x], [y], pairs)
        return float(values[0, 0]), problems.get((0, 0))

    def similarities(
        self, xs: Sequence[Any], ys: Sequence[Any], pairs: Pairs
    ) -> tuple[NDArray[np.float64], dict[Place, str]]:
        """Of every x with every y, together where they are of the same samples."""
        return self._by_samples(xs, ys, (), pairs)[:2]

    def together(
        self, xs: Sequence[Any], ys: Sequence[Any], counterparts: Sequence[Place], pairs: Pairs
    ) -> tuple[NDArray[np.float64], dict[Place, str], dict[Place, Beside]]:
        """With the standard errors of counterparts, and what chance would give, also where others are compared."""
        if self.every_pair:
            return self._by_samples(xs, ys, counterparts, pairs)
        values = np.full((len(xs), len(ys)), np.nan)
        problems: dict[Place, str] = {}
        beside: dict[Place, Beside] = {}
        for place in counterparts:
            i, j = place
            value, of_value, beside_value = self._by_samples([xs[i]], [ys[j]], [(0, 0)], pairs)
            values[place] = value[0, 0]
            if of_value:
                problems[place] = of_value[0, 0]
            if beside_value:
                beside[place] = beside_value[0, 0]
        return values, problems, beside

    def _by_samples(
        self, xs: Sequence[Any], ys: Sequence[Any], counterparts: Sequence[Place], pairs: Pairs
    ) -> tuple[NDArray[np.float64], dict[Place, str], dict[Place, Beside]]:
        """Every x with every y, together where they are of the same samples."""
        values = np.full((len(xs), len(ys)), np.nan)
        beside: dict[Place, Beside] = {}
        groups: dict[Any, tuple[list[int], list[int]]] = {}
        for side, summaries in enumerate((xs, ys)):
            for index, summary in enumerate(summaries):
                if _too_few(summary) is None and len(samples := _samples(summary)) == 1:
                    groups.setdefault(samples, ([], []))[side].append(index)
        for mine, theirs in groups.values():
            if mine and theirs:
                wanted = [(mine.index(i), theirs.index(j)) for i, j in counterparts if i in mine and j in theirs]
                block, of_block = self._of_the_same_samples(
                    [xs[i] for i in mine], [ys[j] for j in theirs], wanted, pairs
                )
                values[np.ix_(mine, theirs)] = block
                beside |= {(mine[i], theirs[j]): statistics for (i, j), statistics in of_block.items()}
        undefined = np.argwhere(np.isnan(values)).tolist()
        return values, {(i, j): self._reason(xs[i], ys[j], pairs) for i, j in undefined}, beside

    def _of_the_same_samples(
        self, xs: Sequence[Any], ys: Sequence[Any], counterparts: Sequence[Place], pairs: Pairs
    ) -> tuple[NDArray[np.float64], dict[Place, Beside]]:
        """(xs, ys), and what stands beside the counterparts."""
        same = all(x is y for x, y in zip(xs, ys, strict=False)) and len(xs) == len(ys)
        values = np.empty((len(xs), len(ys)))
        for i, x in enumerate(xs):
            for j, y in enumerate(ys):  # of a network with itself it is symmetric
                values[i, j] = values[j, i] if same and j < i else self._of_pair(x, y, pairs)
        return values, {}

    def _of_pair(self, x: Any, y: Any, pairs: Pairs) -> float:
        raise NotImplementedError

    def layer_problem(self, summary: Any, pairs: Pairs) -> str | None:
        """Why no similarity with this layer has a value, or None."""
        problem: str | None = _too_few(summary) or summary.problem()
        return problem

    def _reason(self, x: Any, y: Any, pairs: Pairs) -> str:
        """Why two layers have no similarity."""
        if (problem := self.layer_problem(x, pairs)) is not None:
            return problem
        if (problem := self.layer_problem(y, pairs)) is not None:
            return f"{problem} (in the reference)"
        if _samples(x) != _samples(y) or len(_samples(x)) > 1:
            counts = [min(count for count, _ in _samples(summary)) for summary in (x, y)]
            return f"is of other samples than its counterpart ({counts[0]} and {counts[1]} of them)"
        if isinstance(x, TransportMap):
            return "has a transport map without variance, or its counterpart has"
        return (
            "has a similarity that is further out of its range than the noise of the folds explains; use more "
            "`num_projections`"
        )


class CenteredKernelAlignmentOfLayers(_OfSketches):
    """CKA, every layer with every layer of the reference at once: :meth:`lightning_sim.Sketch.cka`."""

    name = "cka"
    every_pair = True

    def _of_the_same_samples(
        self, xs: Sequence[Any], ys: Sequence[Any], counterparts: Sequence[Place], pairs: Pairs
    ) -> tuple[NDArray[np.float64], dict[Place, Beside]]:
        if any(type(sketch) is not Sketch for sketch in (*xs, *ys)):
            return super()._of_the_same_samples(xs, ys, counterparts, pairs)
        found = alignments(xs, ys, estimator=pairs.estimator, pairs=counterparts)  # a Gram serves all of its pairs
        values, errors, chance = (part.to("cpu").double().numpy() for part in found[:3])
        unbiased = np.argwhere(np.isfinite(values)).tolist() if pairs.estimator == "unbiased" else ()
        beside: dict[Place, Beside] = {(i, j): {"chance_deviation": chance[i, j]} for i, j in unbiased}
        what = "ids" if xs[0].count == len(found.units) else "buckets (the id modulo their number)"
        for i, j in found.shares:
            beside.setdefault((i, j), {})["standard_error"] = errors[i, j]
            if pairs.estimator == "unbiased":
                beside[i, j] |= _against_chance(xs[i], ys[j], values[i, j], chance[i, j])
                beside[i, j] |= _carried(found.shares[i, j], found.units, beside[i, j]["z"], what)
        return values, beside

    def _of_pair(self, x: Any, y: Any, pairs: Pairs) -> float:
        # A transport map, and a sketch as published, have the biased estimate only.
        return float(x.cka(y))

    def layer_problem(self, summary: Any, pairs: Pairs) -> str | None:
        """As the estimator sees it."""
        if type(summary) is not Sketch or _too_few(summary) is not None:
            return super().layer_problem(summary, pairs)
        return summary.cka_problem(pairs.estimator)


class NormalizedBuresSimilarityOfLayers(_OfSketches):
    """NBS: :meth:`lightning_sim.Sketch.nbs`.

    Args:
        standard_errors: whether values get them. They need singular vectors, which take two to three times as long.
    """

    name = "nbs"

    def __init__(self, standard_errors: bool = False) -> None:
        self.standard_errors = standard_errors

    def _of_pair(self, x: Any, y: Any, pairs: Pairs) -> float:
        return float(x.nbs(y))

    def _of_the_same_samples(
        self, xs: Sequence[Any], ys: Sequence[Any], counterparts: Sequence[Place], pairs: Pairs
    ) -> tuple[NDArray[np.float64], dict[Place, Beside]]:
        values, beside = super()._of_the_same_samples(xs, ys, counterparts, pairs)
        for i, j in counterparts if self.standard_errors else ():
            if type(xs[i]) is type(ys[j]) is Sketch:
                beside[i, j] = {"standard_error": float(xs[i].estimate(ys[j], measure="nbs").standard_error)}
        return values, beside


def _against_chance(x: Sketch, y: Sketch, value: float, deviation: float) -> Beside:
    """What unrelated samples would read; the skewness of that, which is dear, only where it could matter."""
    found = null_of(value, 0.0, deviation)
    if abs(found.z) < _CERTAIN:
        found = alignment_null(x, y, value, deviation)
    return {"chance_mean": 0.0, "chance_deviation": deviation, "z": found.z, "p_value": found.p_value}


def _carried(shares: Tensor, units: Tensor, z: float, what: str) -> Beside:
    """How many samples the value stands on, with a note where these are few, which names them as `what`."""
    effective, ids, largest, twentieth = concentration(shares, units)
    found: Beside = {"effective_samples": effective, "largest_twentieth": twentieth}
    if twentieth > 0.5 and z >= 3:  # what chance explains is carried by nothing
        listed = ", ".join(f"{id_} ({share:.0%})" for id_, share in zip(ids, largest, strict=True))
        found["note"] = (
            f"stands on few samples: a twentieth of them carries {twentieth:.0%} of it, the most the {what} {listed}"
        )
    return found


def _samples(summary: Any) -> frozenset[tuple[int, int]]:
    """Number and fingerprint of the samples; two of them where features and gradients are of different ones."""
    parts = (summary.features, summary.gradients) if isinstance(summary, TransportMap) else (summary,)
    return frozenset((sketch.count, sketch.fingerprint) for sketch in parts)


def _too_few(summary: Any) -> str | None:
    fewest = min(count for count, _ in _samples(summary))
    return f"holds {fewest} samples, and a comparison needs at least 4" if fewest < 4 else None
