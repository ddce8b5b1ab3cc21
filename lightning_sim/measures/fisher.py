"""Measures of the parameters as a whole, in the metric of the predictions: a norm, a distance, a task's vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lightning_sim._guards import is_sharded
from lightning_sim.functional import task2vec_similarity
from lightning_sim.measures.measure import Measure, Pairs, Side, Values
from lightning_sim.probe.fisher import floating_parameters, summed_diagonals, summed_lengths
from lightning_sim.probe.runner import ProbeRunner, Summed
from lightning_sim.record.key import Key
from lightning_sim.record.scale import Scale

__all__ = ["FisherRaoDistance", "FisherRaoNorm", "Task2Vec"]


class FisherRaoNorm(Measure):
    """Length of the parameters: how far the network is from zero, :func:`lightning_sim.functional.fisher_rao_norm`."""

    name = "fisher_rao_norm"
    scale = Scale(low=0, group="parameters")

    def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
        """The network must be whole on every rank, give logits, and have forward derivatives."""
        if is_sharded(mine.live):
            return "needs whole weights, which are sharded over the ranks"
        _try_first(summed_lengths, mine)
        return None

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """One number, of the network alone."""
        network = mine.live
        squared = mine.runner.mean(network, summed_lengths(mine.runner, network), advance=mine.advance)
        return Values.one(Key(self.name), float(squared) ** 0.5)

    def num_batches(self, runner: ProbeRunner) -> int:
        """One pass."""
        return runner.num_batches()


class FisherRaoDistance(Measure):
    """Length of the difference of the parameters, :func:`lightning_sim.functional.fisher_rao_distance`.

    Two passes over the probe with forward derivatives, each three times as long as one without. The reference's
    parameters are kept on the CPU and, unless they come from a file, in checkpoints.
    """

    name = "fisher_rao_distance"
    scale = Scale(low=0, same=0, group="parameters")
    needs = frozenset({"weights"})

    def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
        """Both must give logits, have forward derivatives, and the same parameters."""
        _require_same_parameters(mine, theirs)
        _try_first(summed_lengths, mine, theirs)
        return None

    def keep(self, side: Side) -> Mapping[str, Tensor]:
        """Parameters and buffers."""
        return side.tensors()

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """One number: the mean of the lengths at both ends."""
        network, other, weights = mine.live, theirs.live, theirs.kept(self)
        own = floating_parameters(network)
        difference = {name: weights[name].to(value) - value.detach() for name, value in own.items()}
        squared = mine.runner.mean(network, summed_lengths(mine.runner, network, difference), advance=mine.advance)
        lengths = summed_lengths(mine.runner, other, difference)
        squared += mine.runner.mean(other, lengths, weights=weights, advance=mine.advance)
        return Values.one(Key(self.name), math.sqrt(float(squared) / 2))

    def num_batches(self, runner: ProbeRunner) -> int:
        """A pass of each network."""
        return 2 * runner.num_batches()


class Task2Vec(Measure):
    """Which parameters the predictions depend on, :func:`lightning_sim.functional.task2vec_similarity`.

    Every sample is run by itself, with a backward pass for each of its classes: 1.5 s for 1024 digits and the demo's
    network on one core, where a plain pass takes 0.02 s, and a thousand times the work of an epoch on the probe for a
    thousand classes; choose `num_samples` by it.
    """

    name = "task2vec"
    scale = Scale(low=0, high=1, same=1, group="parameters")
    needs = frozenset({"weights"})

    def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
        """Both must give logits and have the same parameters."""
        _require_same_parameters(mine, theirs)
        _try_first(summed_diagonals, mine, theirs, one_by_one=True)
        return None

    def keep(self, side: Side) -> Mapping[str, Tensor]:
        """The diagonal of the Fisher information, by filter."""
        network = side.live
        diagonals = summed_diagonals(side.runner, network)
        mean = side.runner.mean(network, diagonals, weights=side.weights, one_by_one=True, advance=side.advance)
        # Of the precision it was computed in, by which a similarity knows what is rounding.
        precision = max((value.dtype for value in floating_parameters(network).values()), key=lambda d: d.itemsize)
        return {"vector": mean.cpu().to(torch.promote_types(precision, torch.float32))}

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """One number."""
        similarity = task2vec_similarity(mine.kept(self)["vector"], theirs.kept(self)["vector"])
        return Values.one(Key(self.name), float(similarity))

    def num_batches(self, runner: ProbeRunner) -> int:
        """Every sample by itself."""
        return runner.num_batches(one_by_one=True)


def _require_same_parameters(mine: Side, theirs: Side) -> None:
    shapes = [
        {(name, tuple(value.shape)) for name, value in floating_parameters(side.live).items()}
        for side in (mine, theirs)
    ]
    different = ", ".join(sorted({name for name, _ in shapes[0] ^ shapes[1]})[:8])
    if different:
        raise ValueError(f"the reference must have the same parameters, these differ: {different}")


def _try_first(summed: Callable[[ProbeRunner, nn.Module], Summed], *sides: Side, one_by_one: bool = False) -> None:
    """Run each network on the first batch, once where they are the same; what that raises is why it cannot be."""
    for side in {id(side.network): side for side in sides}.values():
        side.runner.try_first(side.live, summed(side.runner, side.live), one_by_one=one_by_one)
