"""Measures of two networks' outputs on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from lightning_sim.functional import estimate, permutation_null
from lightning_sim.measures.calling import called, function_name
from lightning_sim.measures.measure import Measure, Pairs, Side, Values
from lightning_sim.record.key import Key
from lightning_sim.record.scale import Scale

__all__ = ["OutputFunction", "output_statistics"]

_MOST_NUMBERS = 2**25  # of pairs of samples times classes, beyond which their divergences take longer than the rest


class OutputFunction(Measure):
    """A function of the logits of two networks as a measure.

    Args:
        function: ``function(logits_a, logits_b)`` of two (samples, classes) gives a number; or a torchmetrics
            ``Metric`` with ``update(logits_a, logits_b)``.
        name: first part of the logged names; the function's own if None.
        scale: how its values are to be read.
        beside: ``beside(logits_a, logits_b)`` gives what stands beside the value, by the names of
            :data:`lightning_sim.record.STATISTICS`; a function may also give a number and its standard error.

    Example:
        >>> import torch
        >>> from lightning_sim.measures import OutputFunction, Scale
        >>> def confidence_gap(a, b):
        ...     return a.softmax(1).amax(1).mean() - b.softmax(1).amax(1).mean()
        >>> OutputFunction(confidence_gap, scale=Scale(low=-1, high=1, same=0)).name
        'confidence_gap'
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], object],
        name: str | None = None,
        scale: Scale | None = None,
        beside: Callable[[Tensor, Tensor], Mapping[str, float]] | None = None,
    ) -> None:
        self.function = function
        self.name = function_name(function, name)
        self.scale = scale or Scale()
        self.beside = beside

    def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
        """Outputs must be choices between the same classes."""
        for side, whose in ((mine, ""), (theirs, " of the reference")):
            if side.snapshot.output_problem is not None:
                return f"the output{whose} {side.snapshot.output_problem}"
        a, b = mine.snapshot.logits, theirs.snapshot.logits
        if a is None or b is None:
            return "the outputs were not kept"
        if a.shape[1] != b.shape[1]:
            return f"the output has {a.shape[1]} classes, and the reference {b.shape[1]}"
        return "the output has one column, and predictions need at least two classes" if a.shape[1] < 2 else None

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """One number."""
        a, b = mine.snapshot.logits, theirs.snapshot.logits
        if a is None or b is None:
            why = mine.snapshot.output_problem or theirs.snapshot.output_problem or "was not kept"
            return Values.one(Key(self.name), math.nan, f"cannot be computed: the output {why}")
        value, problem, beside = called(self.function, a, b)
        if self.beside is not None and problem is None:
            beside |= self.beside(a, b)
        return Values.one(Key(self.name), value, problem, beside)


def output_statistics(
    measure: Literal["agreement", "jsd", "rank_correlation"], a: Tensor, b: Tensor
) -> dict[str, float]:
    """What stands beside a mean over samples: its standard error, and what pairs of different samples would read."""
    found = {"standard_error": float(estimate(a, b, measure=measure).standard_error)}
    if measure != "jsd" or len(a) * a.numel() <= _MOST_NUMBERS:
        null = permutation_null(a, b, measure=measure)
        found |= {"chance_mean": null.mean, "chance_deviation": null.standard_deviation}
        found |= {"z": null.z, "p_value": null.p_value}
    return found

