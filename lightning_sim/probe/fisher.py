"""The Fisher information of a network's parameters on the probe: a norm, a distance to others, and a task's vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_sim._fisher import by_filter, differentiable_kernels, squared_lengths, summed_diagonal
from lightning_sim._measurement import FISHER_MEASURES
from lightning_sim.functional import task2vec_similarity
from lightning_sim.probe.forward import Called, find_logits, without_logits
from lightning_sim.probe.gradients import logits_problem
from lightning_sim.probe.ranks import LostRanksError
from lightning_sim.probe.runner import ProbeRunner, Summed
from lightning_sim.probe.snapshot import Snapshot

__all__ = ["FISHER_MEASURES", "FisherMeasures"]

_AGAINST_REFERENCE = FISHER_MEASURES[1:]


@dataclass(frozen=True)
class FisherMeasures:
    """Computes what :mod:`lightning_sim.functional.fisher` defines over the probe, where a training runs.

    Attributes:
        runner: runs networks over the probe.
        measures: of `FISHER_MEASURES`.
    """

    runner: ProbeRunner
    measures: tuple[str, ...]

    def problems(self, network: nn.Module, other: nn.Module, *, has_weights: bool) -> dict[str, str]:
        """Measure -> why it cannot be made, found on the first batch of the probe.

        Args:
            network: the monitored one.
            other: the reference, or the network where that is one of its own states.
            has_weights: whether there is a reference network at all.
        """
        found: dict[str, str] = {}
        for measure in self.measures:
            against = measure in _AGAINST_REFERENCE
            if against and not has_weights:
                found[measure] = "sketches hold neither the parameters of the reference nor their Fisher information"
                continue
            different = sorted({name for name, _ in _shapes(network).items() ^ _shapes(other).items()})
            if against and different:
                names = ", ".join(different[:8])
                found[measure] = f"the reference must have the same parameters, these differ: {names}"
                continue
            for tried in dict.fromkeys((network, other) if against else (network,)):
                try:
                    one_by_one = measure == "task2vec"
                    self.runner.try_first(
                        tried, self._diagonal(tried) if one_by_one else self._length(tried), one_by_one=one_by_one
                    )
                except Exception as error:
                    found.setdefault(measure, _words(error))
        return found

    def missing(self, snapshot: Snapshot) -> list[str]:
        """The measures that a reference without more than this snapshot cannot serve."""
        kept = {"fisher_rao_distance": snapshot.weights, "task2vec": snapshot.task_vector}
        return [measure for measure in self.measures if measure in kept and kept[measure] is None]

    def complete(
        self,
        snapshot: Snapshot,
        network: nn.Module,
        weights: Mapping[str, Tensor] | None = None,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep in the snapshot what comparing with it needs: weights and task vector, of the network or `weights`."""
        self.keep_weights(snapshot, network, weights)
        self._keep_task_vector(snapshot, network, weights, advance)

    def keep_weights(
        self, snapshot: Snapshot, network: nn.Module, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """The part of `complete` that runs nothing."""
        if "fisher_rao_distance" in self.missing(snapshot):
            given = self.runner.weights_of_all_ranks(network, weights)
            own = (*network.named_parameters(), *network.named_buffers())
            snapshot.weights = {name: given.get(name, value).detach().to("cpu", copy=True) for name, value in own}

    def measure(
        self,
        network: nn.Module,
        current: Snapshot,
        other: nn.Module,
        reference: Snapshot,
        advance: Callable[[], None] = lambda: None,
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Measure -> value, and measure -> why it is NaN. Keeps the task vector in `current`.

        Args:
            network: the monitored one.
            current: what was measured of it.
            other: whose forward the reference's weights are run in.
            reference: completed.
        """
        compute: Mapping[str, Callable[[], float]] = {
            "fisher_rao_norm": lambda: float(self.runner.mean(network, self._length(network), advance=advance)) ** 0.5,
            "fisher_rao_distance": lambda: self._distance(network, other, reference, advance),
            "task2vec": lambda: self._similarity(network, current, reference, advance),
        }
        values, problems = {}, {}
        for measure in self.measures:
            try:
                values[measure] = compute[measure]()
                if not math.isfinite(values[measure]):
                    problems[measure] = "is NaN or infinite"
            except LostRanksError:
                raise
            except Exception as error:
                values[measure], problems[measure] = math.nan, f"could not be computed: {_words(error)}"
        return values, problems

    def num_batches(self) -> int:
        """How many batches of a progress bar one measurement takes."""
        passes = ("fisher_rao_norm" in self.measures) + 2 * ("fisher_rao_distance" in self.measures)
        samples = self.runner.num_batches(one_by_one=True) if "task2vec" in self.measures else 0
        return passes * self.runner.num_batches() + samples

    def _distance(
        self, network: nn.Module, other: nn.Module, reference: Snapshot, advance: Callable[[], None]
    ) -> float:
        theirs = reference.weights
        if theirs is None:
            raise ValueError("the reference's parameters were not kept")
        difference = {name: theirs[name].to(value) - value.detach() for name, value in _parameters(network).items()}
        squared = self.runner.mean(network, self._length(network, difference), advance=advance)
        squared += self.runner.mean(other, self._length(other, difference), weights=theirs, advance=advance)
        return math.sqrt(float(squared) / 2)

    def _similarity(
        self, network: nn.Module, current: Snapshot, reference: Snapshot, advance: Callable[[], None]
    ) -> float:
        self._keep_task_vector(current, network, None, advance)
        if current.task_vector is None or reference.task_vector is None:
            raise ValueError("the reference's task vector could not be computed")
        return float(task2vec_similarity(current.task_vector, reference.task_vector))

    def _keep_task_vector(
        self,
        snapshot: Snapshot,
        network: nn.Module,
        weights: Mapping[str, Tensor] | None,
        advance: Callable[[], None],
    ) -> None:
        if "task2vec" in self.missing(snapshot):
            diagonal = self._diagonal(network)
            mean = self.runner.mean(network, diagonal, weights=weights, one_by_one=True, advance=advance)
            # Of the precision it was computed in, by which a similarity knows what is rounding.
            precision = max((value.dtype for value in _parameters(network).values()), key=lambda d: d.itemsize)
            snapshot.task_vector = mean.cpu().to(torch.promote_types(precision, torch.float32))

    def _length(self, network: nn.Module, direction: Mapping[str, Tensor] | None = None) -> Summed:
        """Squared Fisher-Rao lengths of a direction, or of the parameters themselves, (), to be summed."""

        def summed(batches: Iterator[tuple[Tensor, Any]], weights: Mapping[str, Tensor]) -> Tensor:
            parameters = _given(_parameters(network), weights)
            along = {name: (direction or parameters)[name].to(value) for name, value in parameters.items()}
            total = torch.zeros((), dtype=torch.float64, device=self.runner.device)
            with differentiable_kernels(network):
                for ids, batch in batches:
                    logits_at = partial(self._logits, network, ids, batch)
                    total += squared_lengths(logits_at, parameters, along).sum()
            return total

        return summed

    def _diagonal(self, network: nn.Module) -> Summed:
        """Diagonals of the Fisher information, (units,), to be summed over batches of one sample."""

        def summed(batches: Iterator[tuple[Tensor, Any]], weights: Mapping[str, Tensor]) -> Tensor:
            with differentiable_kernels(network), torch.enable_grad():
                parameters = {k: v.requires_grad_() for k, v in _given(_parameters(network), weights).items()}
                logits = (self._logits(network, ids, batch, parameters)[0] for ids, batch in batches)
                return by_filter(summed_diagonal(logits, list(parameters.values()))).double()

        return summed

    def _logits(
        self,
        network: nn.Module,
        ids: Tensor,
        batch: Any,
        parameters: Mapping[str, Tensor],
    ) -> Tensor:
        """(samples, classes), with these parameters."""
        weights = {f"network.{name}": value for name, value in parameters.items()}
        with self.runner.context(network), torch.autocast(self.runner.device.type, enabled=False):
            output = functional_call(Called(network, self.runner.forward), weights, (batch,))
        logits = find_logits(output)
        reason = without_logits(output) if logits is None else logits_problem(logits)
        if logits is None or reason is not None or len(logits) != len(ids):
            reason = reason or f"for {len(ids)} samples is of shape {tuple(logits.shape) if logits is not None else ()}"
            raise ValueError(f"it needs logits (samples, classes), and the output {reason}")
        return logits


def _parameters(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.named_parameters() if value.is_floating_point()}


def _given(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` of the names of `own`, where there are any, in the place and precision of `own`."""
    return {name: weights.get(name, value).to(value).detach() for name, value in own.items()}


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in _parameters(network).items()}


def _words(error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0]
    return reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
