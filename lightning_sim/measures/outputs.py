"""Measures of two networks' outputs on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lightning_sim.functional import estimate, permutation_null
from lightning_sim.measures.calling import called, function_name
from lightning_sim.measures.measure import Measure, Pairs, Side, Values
from lightning_sim.probe.targets import find_targets
from lightning_sim.record.key import Key
from lightning_sim.record.scale import Scale

__all__ = ["ErrorConsistency", "OutputFunction", "output_statistics"]

_MOST_NUMBERS = 2**25  # of pairs of samples, for divergences times classes, beyond which they cost more than the rest


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
        return _problem_of_outputs(mine, theirs)

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """One number."""
        a, b = mine.snapshot.logits, theirs.snapshot.logits
        if a is None or b is None:
            return Values.one(Key(self.name), math.nan, _without_outputs(mine, theirs))
        value, problem, beside = called(self.function, a, b)
        if self.beside is not None and problem is None:
            beside |= self.beside(a, b)
        return Values.one(Key(self.name), value, problem, beside)


class ErrorConsistency(Measure):
    """Whether both err on the same samples, :func:`lightning_sim.functional.error_consistency`, and how often.

    Labels are those in the probe's batches, in the second place of a tuple or under a name such as ``"labels"``. The
    accuracies stand beside it as ``accuracy`` and ``reference_accuracy``.
    """

    name = "error_consistency"
    scale = Scale(low=-1, high=1, same=1)
    needs = frozenset({"logits"})

    def __init__(self) -> None:
        self._labels: Tensor | None = None

    def scales(self) -> Mapping[str, Scale]:
        """Of all that it gives."""
        return {self.name: self.scale, "accuracy": Scale(low=0, high=1), "reference_accuracy": Scale(low=0, high=1)}

    def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
        """Outputs must be choices between the same classes, and batches have labels."""
        self._labels = None  # those of another probe are not these
        problem = _problem_of_outputs(mine, theirs)
        if problem is not None or mine.snapshot.logits is None:
            return problem
        labels = _labels(mine.runner.probe.first_batch(), mine.snapshot.logits.shape[1])
        return (
            "no labels were found in the probe's batches, as in the second place of a tuple" if labels is None else None
        )

    def keys(self, pairs: Pairs) -> list[Key]:
        """Three numbers."""
        return [Key(name) for name in self.scales()]

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """On all samples; kappa is NaN where both are always right, or always wrong."""
        a, b = mine.snapshot.logits, theirs.snapshot.logits
        found = Values()
        if a is None or b is None:
            for key in self.keys(pairs):
                found.add(key, math.nan, _without_outputs(mine, theirs))
            return found
        if self._labels is None:
            self._labels = _labels(mine.runner.probe.batches(), a.shape[1])
        if self._labels is None:
            raise ValueError("some of the probe's batches have no labels")
        labels = self._labels
        of_kappa = partial(estimate, measure="error_consistency", labels=labels)
        found.add(Key(self.name), *called(of_kappa, a, b))
        for name, logits in (("accuracy", a), ("reference_accuracy", b)):
            if bool(logits.isnan().any()):
                found.add(Key(name), math.nan, "is undefined: some outputs are NaN")
                continue
            share = float((logits.argmax(1) == labels).double().mean())
            error = math.sqrt(share * (1 - share) / (len(labels) - 1))
            found.add(Key(name), share, None, {"standard_error": error})
        return found


def _labels(batches: Iterable[tuple[Tensor, object]], classes: int) -> Tensor | None:
    """The labels of the samples, in their order; None where a batch has none."""
    found = [find_targets(batch, torch.empty(len(ids), classes, device="cpu")) for ids, batch in batches]
    return None if any(part is None for part in found) else torch.cat([part for part in found if part is not None])


def _problem_of_outputs(mine: Side, theirs: Side) -> str | None:
    """Why they are no choices between the same classes, in words, or None."""
    for side, whose in ((mine, ""), (theirs, " of the reference")):
        if side.snapshot.output_problem is not None:
            return f"the output{whose} {side.snapshot.output_problem}"
    a, b = mine.snapshot.logits, theirs.snapshot.logits
    if a is None or b is None:
        return "the outputs were not kept"
    if a.shape[1] != b.shape[1]:
        return f"the output has {a.shape[1]} classes, and the reference {b.shape[1]}"
    return "the output has one column, and predictions need at least two classes" if a.shape[1] < 2 else None


def _without_outputs(mine: Side, theirs: Side) -> str:
    why = mine.snapshot.output_problem or theirs.snapshot.output_problem or "was not kept"
    return f"cannot be computed: the output {why}"


def output_statistics(
    measure: Literal["agreement", "jsd", "rank_correlation"], a: Tensor, b: Tensor
) -> dict[str, float]:
    """What stands beside a mean over samples: its standard error, and what pairs of different samples would read."""
    found = {"standard_error": float(estimate(a, b, measure=measure).standard_error)}
    if len(a) ** 2 * (a.shape[1] if measure == "jsd" else 1) <= _MOST_NUMBERS:
        null = permutation_null(a, b, measure=measure)
        found |= {"chance_mean": null.mean, "chance_deviation": null.standard_deviation}
        found |= {"z": null.z, "p_value": null.p_value}
    return found
