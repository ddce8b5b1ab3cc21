"""How much the samples of a layer pull in one direction: a measure of the network alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Literal

from lightning_sim.measures.measure import Measure, Pairs, Side, Values
from lightning_sim.probe.snapshot import Snapshot
from lightning_sim.record.key import Key
from lightning_sim.record.scale import Scale
from lightning_sim.sketch import Tang2020Sketch, mean_embedding_norm

__all__ = ["MeanEmbedding"]

_FORMS: Mapping[str, Literal["diagonal", "frobenius"] | None] = {
    "mean_embedding": None,
    "mean_embedding_diagonal": "diagonal",
    "mean_embedding_frobenius": "frobenius",
}


class MeanEmbedding(Measure):
    """Norm of the kernel mean embedding in three forms, :func:`lightning_sim.sketch.mean_embedding_norm`."""

    name = "mean_embedding"
    scale = Scale(low=0)

    def scales(self) -> Mapping[str, Scale]:
        """A length, and its shares of the largest possible."""
        return {name: self.scale if form is None else Scale(low=0, high=1) for name, form in _FORMS.items()}

    def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
        """The sketch must hold the sum of the samples."""
        if isinstance(mine.runner.make_sketch(), Tang2020Sketch):
            return 'it needs a sum of samples, which sketch="tang2020" lacks'
        if "transport_map" in pairs.representations:
            return 'it is not defined for the representation "transport_map"'
        return None

    def keys(self, pairs: Pairs) -> list[Key]:
        """Three numbers for every layer and representation."""
        kinds = itertools.product(pairs.representations, pairs.layers)
        return [Key(name, *kind) for kind in kinds for name in _FORMS]

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """Of the network alone."""
        found = Values()
        for key in self.keys(pairs):
            found.add(key, *_norm(mine.snapshot, key.layer or "", key.representation or "", _FORMS[key.measure]))
        return found


def _norm(
    snapshot: Snapshot, layer: str, representation: str, form: Literal["diagonal", "frobenius"] | None
) -> tuple[float, str | None]:
    sketch = snapshot.of(representation).get(layer)
    if sketch is None:
        return math.nan, snapshot.problem_of(layer, representation)
    value = float(mean_embedding_norm(sketch, normalization=form))
    return value, "is zero for every sample" if sketch.is_finite() else sketch.problem()
