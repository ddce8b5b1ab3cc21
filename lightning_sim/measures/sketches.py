"""The measures that sketches give themselves: CKA and NBS of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_sim.measures.layers import LayerMeasure
from lightning_sim.measures.measure import Pairs
from lightning_sim.record.scale import Scale
from lightning_sim.sketch import Sketch, TransportMap, centered_kernel_alignment_matrix

__all__ = ["CenteredKernelAlignmentOfLayers", "NormalizedBuresSimilarityOfLayers"]


class _OfSketches(LayerMeasure):
    """A similarity of two sketches of the same samples; layers of other samples have none with each other."""

    scale = Scale(low=0, high=1, same=1)

    def similarity(self, x: Any, y: Any, pairs: Pairs) -> tuple[float, str | None]:
        """Of one pair."""
        values, problems = self.similarities([x], [y], pairs)
        return float(values[0, 0]), problems.get((0, 0))

    def similarities(
        self, xs: Sequence[Any], ys: Sequence[Any], pairs: Pairs
    ) -> tuple[NDArray[np.float64], dict[tuple[int, int], str]]:
        """Of every x with every y, together where they are of the same samples."""
        values = np.full((len(xs), len(ys)), np.nan)
        groups: dict[Any, tuple[list[int], list[int]]] = {}
        for side, summaries in enumerate((xs, ys)):
            for index, summary in enumerate(summaries):
                if _too_few(summary) is None and len(samples := _samples(summary)) == 1:
                    groups.setdefault(samples, ([], []))[side].append(index)
        for mine, theirs in groups.values():
            if mine and theirs:
                block = self._of_the_same_samples([xs[i] for i in mine], [ys[j] for j in theirs], pairs)
                values[np.ix_(mine, theirs)] = block
        undefined = np.argwhere(np.isnan(values)).tolist()
        return values, {(i, j): self._reason(xs[i], ys[j], pairs) for i, j in undefined}

    def _of_the_same_samples(self, xs: Sequence[Any], ys: Sequence[Any], pairs: Pairs) -> NDArray[np.float64]:
        """(xs, ys)."""
        same = all(x is y for x, y in zip(xs, ys, strict=False)) and len(xs) == len(ys)
        values = np.empty((len(xs), len(ys)))
        for i, x in enumerate(xs):
            for j, y in enumerate(ys):  # of a network with itself it is symmetric
                values[i, j] = values[j, i] if same and j < i else self._of_pair(x, y, pairs)
        return values

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

    def _of_the_same_samples(self, xs: Sequence[Any], ys: Sequence[Any], pairs: Pairs) -> NDArray[np.float64]:
        if any(type(sketch) is not Sketch for sketch in (*xs, *ys)):
            return super()._of_the_same_samples(xs, ys, pairs)
        values = centered_kernel_alignment_matrix(xs, ys, estimator=pairs.estimator)  # a Gram serves all of its pairs
        return values.to("cpu").double().numpy()

    def _of_pair(self, x: Any, y: Any, pairs: Pairs) -> float:
        # A transport map, and a sketch as published, have the biased estimate only.
        return float(x.cka(y))

    def layer_problem(self, summary: Any, pairs: Pairs) -> str | None:
        """As the estimator sees it."""
        if type(summary) is not Sketch or _too_few(summary) is not None:
            return super().layer_problem(summary, pairs)
        return summary.cka_problem(pairs.estimator)


class NormalizedBuresSimilarityOfLayers(_OfSketches):
    """NBS: :meth:`lightning_sim.Sketch.nbs`."""

    name = "nbs"

    def _of_pair(self, x: Any, y: Any, pairs: Pairs) -> float:
        return float(x.nbs(y))


def _samples(summary: Any) -> frozenset[tuple[int, int]]:
    """Number and fingerprint of the samples; two of them where features and gradients are of different ones."""
    parts = (summary.features, summary.gradients) if isinstance(summary, TransportMap) else (summary,)
    return frozenset((sketch.count, sketch.fingerprint) for sketch in parts)


def _too_few(summary: Any) -> str | None:
    fewest = min(count for count, _ in _samples(summary))
    return f"holds {fewest} samples, and a comparison needs at least 4" if fewest < 4 else None
