"""What a measure is: an object that knows what it needs, when it does not apply, and how two networks compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_sim._adapters import absent_adapters
from lightning_sim._guards import whole
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.probe.snapshot import Snapshot
from lightning_sim.record.key import Key
from lightning_sim.record.measurement import Measurement, SimilarityMatrix
from lightning_sim.record.scale import Scale

__all__ = ["Measure", "Pairs", "Side", "Values"]

T = TypeVar("T")


@dataclass(frozen=True)
class Pairs:
    """What is compared with what.

    Args:
        layers: layer of the network -> layer of the reference.
        representations: what of the layers is compared, for instance ``("features", "gradients")``.
        estimator: of CKA, ``"unbiased"`` or ``"biased"``.
        optional: the measures that nobody named, which are left out where they do not apply, or would cost much.
    """

    layers: Mapping[str, str]
    representations: tuple[str, ...] = ("features",)
    estimator: str = "unbiased"
    optional: frozenset[str] = frozenset()


@dataclass
class Side:
    """One of the two networks at one moment.

    Args:
        snapshot: sketches of its layers on the probe, its outputs, and what measures keep of it.
        runner: runs a network over the probe, for measures that need a pass of their own.
        network: the network itself; None where nothing but its saved sketches is at hand.
        weights: parameters and buffers to run it with instead of its own, by name, as of a reference that is an earlier
            state of the network; None for its own.
        is_reference: which of the two it is.
        advance: to be called after every batch of a pass, for the progress bar.
    """

    snapshot: Snapshot
    runner: ProbeRunner
    network: nn.Module | None = None
    weights: Mapping[str, Tensor] | None = None
    is_reference: bool = False
    advance: Callable[[], None] = lambda: None

    @property
    def live(self) -> nn.Module:
        """The network, for a measure of its parameters.

        Raises:
            ValueError: where nothing but its saved sketches is at hand.
        """
        if self.network is None:
            raise ValueError("sketches hold neither the parameters of the reference nor their Fisher information")
        return self.network

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, copied to the CPU; the same on every rank."""
        given = self.runner.weights_of_all_ranks(self.live, self.weights)
        own = dict((*self.live.named_parameters(), *self.live.named_buffers()))
        # Of a file without adapters, which are not run.
        absent = set().union(*absent_adapters(self.live, self.weights).values()) if self.weights else set()
        return {
            name: whole(given.get(name, value)).detach().to("cpu", copy=True)
            for name, value in own.items()
            if name not in absent
        }

    def kept(self, measure: Measure) -> Mapping[str, Tensor]:
        """What `Measure.keep` gives for this network, made once."""
        held = self.snapshot.kept
        if measure.name not in held:
            held[measure.name] = dict(measure.keep(self))
        return held[measure.name]


@dataclass
class Values:
    """What a measure found.

    Args:
        numbers: by key; NaN where one could not be computed.
        matrices: layer x layer, of measures that compare every layer with every layer.
        problems: key -> why its number is NaN, as words that follow the name of the layer.
        statistics: name, of :data:`lightning_sim.record.STATISTICS`, -> key -> what stands beside its number.
        notes: key -> what is to be known of its number, as words that follow the name of the layer.
    """

    numbers: dict[Key, float] = field(default_factory=dict)
    matrices: list[SimilarityMatrix] = field(default_factory=list)
    problems: dict[Key, str] = field(default_factory=dict)
    statistics: dict[str, dict[Key, float]] = field(default_factory=dict)
    notes: dict[Key, str] = field(default_factory=dict)

    @classmethod
    def one(
        cls, key: Key, value: float, problem: str | None = None, beside: Mapping[str, float] | None = None
    ) -> Values:
        """A single number, as `add` takes it."""
        found = cls()
        found.add(key, value, problem, beside)
        return found

    def add(
        self, key: Key, value: float, problem: str | None = None, beside: Mapping[str, float] | None = None
    ) -> None:
        """One number, with the reason where it is NaN, and what stands beside it, as its ``standard_error``.

        One that float32 cannot hold is kept as NaN as well.
        """
        self.numbers[key] = value
        for name, statistic in (beside or {}).items():
            self.statistics.setdefault(name, {})[key] = statistic
        if math.isnan(value):
            self.problems[key] = problem or "is undefined"
        elif abs(value) > torch.finfo(torch.float32).max:
            self.problems[key] = f"is {value:.3g}, beyond the range of float32"

    def measurement(self, epoch: int, step: int) -> Measurement:
        """All of it as what was measured at a moment."""
        return Measurement(epoch, step, self.numbers, tuple(self.matrices), self.statistics, self.notes)

    def under(self, condition: str) -> Values:
        """The same under a condition of the samples."""

        def renamed(of: Mapping[Key, T]) -> dict[Key, T]:
            return {key._replace(condition=condition): value for key, value in of.items()}

        return Values(
            renamed(self.numbers),
            [replace(matrix, condition=condition) for matrix in self.matrices],
            renamed(self.problems),
            {name: renamed(of_keys) for name, of_keys in self.statistics.items()},
            renamed(self.notes),
        )

    def update(self, other: Values) -> None:
        """Add what another measure found."""
        self.numbers |= other.numbers
        self.matrices += other.matrices
        self.problems |= other.problems
        self.notes |= other.notes
        for name, of_keys in other.statistics.items():
            self.statistics.setdefault(name, {}).update(of_keys)


class Measure:
    """Something to be measured of two networks on one probe; subclass it, or wrap a function in a
    :class:`lightning_sim.measures.LayerFunction` or :class:`lightning_sim.measures.OutputFunction`.

    Attributes:
        name: first part of the logged names; holds neither ``/`` nor ``@``.
        scale: how its values are to be read. Every chart, table and report takes it from the record.
        needs: beside the sketches of the layers: ``"logits"`` (outputs (samples, classes)), and ``"weights"`` (both
            networks themselves, for their parameters or passes of its own: a reference that is a file of sketches is
            refused).
    """

    name: str
    scale: Scale
    needs: frozenset[str] = frozenset()

    def scales(self) -> Mapping[str, Scale]:
        """Scale of every measure name that it gives values for, by default its own."""
        return {self.name: self.scale}

    def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
        """Why it does not apply to these networks, in words; None if it does. What it raises is a reason as well.

        Asked before training starts, with snapshots of the first batch alone.
        """
        return None

    def keys(self, pairs: Pairs) -> list[Key]:
        """What `compare` gives values for, once `refuse` has been asked; by default one number of the whole network."""
        return [Key(self.name)]

    def keep(self, side: Side) -> Mapping[str, Tensor]:
        """What of one network is kept to be compared later, on the CPU; the same on every rank.

        Called once for the reference. Checkpoints hold it where the reference could not be made again.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What it found once and for all, for checkpoints: primitives and tensors, by default nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, empty if nothing, when a training is resumed, after `refuse`."""

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """The values of this moment. What it raises is reported, and makes only this measure's values NaN."""
        raise NotImplementedError

    def num_batches(self, runner: ProbeRunner) -> int:
        """How many batches its own passes over the probe take, for the progress bar."""
        return 0
