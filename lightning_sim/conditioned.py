"""Two networks compared on samples that are corrupted, attacked, or changed otherwise."""

from __future__ import annotations

import math
import mmap
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sim._guards import is_sharded, substituted_parameters
from lightning_sim.conditions.attacks import Attack
from lightning_sim.conditions.named import applied
from lightning_sim.conditions.pixels import find_inputs, with_inputs
from lightning_sim.measures import Key, LayerMeasure, Measure, Pairs, Side, Values
from lightning_sim.probe import LostRanksError, Probe, Snapshot, isolated_random_state
from lightning_sim.probe.ranks import failing_together
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.settings import Settings

__all__ = ["Conditioned", "compared"]

_IN_MEMORY = 2**30  # bytes of inputs, beyond which they lie in a file
_KEPT = "conditions"  # among what measures keep of the reference
_Batches = list[tuple[Tensor, Any]]


class Conditioned:
    """Compares a network with the reference under every condition, by measures of outputs, and of layers if asked.

    Args:
        settings: with the conditions.
        runner: runs networks over the samples as they are.
    """

    def __init__(self, settings: Settings, runner: ProbeRunner) -> None:
        self._settings, self._runner = settings, runner
        self._conditions: Mapping[str, Any] = settings.conditions
        self._measures: list[Measure] = []
        self._pairs = Pairs({})
        self._clean: _Batches = []
        self._made: dict[str, _Batches] = {}  # samples that are the same for both networks in every measurement
        self._reference: dict[str, Snapshot] = {}

    def keeps(self) -> list[str]:
        """Under which name the reference's weights are kept, which it is run with on other samples."""
        return [_KEPT] if self._conditions and self._settings.reference.module is None else []

    def keys(self) -> list[Key]:
        """What every measurement gives values for."""
        keys = [key for measure in self._measures for key in measure.keys(self._pairs)]
        return [key._replace(condition=name) for name in self._conditions for key in keys]

    def num_batches(self) -> int:
        """Batches that one measurement runs of this rank's share of the probe."""
        passes = {"reference": 1, "self": 2, "network": 3}
        crafted = [getattr(one, "crafted_on", "reference") for one in self._conditions.values()]
        return self._runner.num_batches() * sum(passes[on] for on in crafted)

    def start(self, measures: tuple[Measure, ...], pairs: Pairs, theirs: Side) -> None:
        """Make the samples that stay the same, and run the reference on them.

        Raises:
            ValueError: for what cannot work, with what would.
        """
        layers = self._settings.layers_under_conditions
        self._pairs, self._measures = pairs, [m for m in measures if _applies(m, layers)]
        if not self._conditions:
            return
        if not self._measures:
            raise ValueError(
                "nothing is measured under `conditions`: they are for measures of outputs, such as agreement, and with "
                'layers_under_conditions=True for those of layers; name such measures, or pass conditions="clean"'
            )
        if theirs.network is None:
            raise ValueError(
                "conditions need the reference itself, to run it on other samples, and it is a file of sketches; "
                'pass the network or its checkpoint, or conditions="clean"'
            )
        if self.keeps() and _KEPT not in theirs.snapshot.kept:
            theirs.snapshot.kept[_KEPT] = theirs.tensors()
        runner = self._runner
        with failing_together(runner.world_size, runner.device), isolated_random_state(runner.seed):
            self._clean = list(runner.probe.batches(*runner.share()))
        for name, condition in self._conditions.items():
            try:
                if not isinstance(condition, Attack):
                    with failing_together(runner.world_size, runner.device):
                        made = [(ids, applied(condition, batch, ids, runner.seed)) for ids, batch in self._clean]
                        self._made[name] = self._held(made)
                self._of_reference(name, theirs)
            except LostRanksError:
                raise
            except Exception as error:
                raise ValueError(f"the condition {name!r} cannot be made: {error}") from error

    def compare(self, mine: Side, theirs: Side) -> Values:
        """What the measures find under every condition; NaN under one that fails.

        Raises:
            Exception: what the network raises, where the settings have ``on_error="raise"``.
        """
        found, previous = Values(), self._settings.reference.kind == "previous"
        for name in self._conditions:
            current, reference = self._snapshots(name, mine, theirs)
            sides = replace(mine, snapshot=current), replace(theirs, snapshot=reference)
            for measure in self._measures:
                found.update(compared(measure, *sides, self._pairs).under(name))
            if previous:
                on = getattr(self._conditions[name], "crafted_on", "self")
                self._reference.pop(name, None)
                self._made = {made: batches for made, batches in self._made.items() if made != name or on == "self"}
                if on == "self":
                    self._reference[name] = current
        if previous and self._conditions:
            mine.snapshot.kept[_KEPT] = mine.tensors()
        return found

    def _snapshots(self, name: str, mine: Side, theirs: Side) -> tuple[Snapshot, Snapshot]:
        """Of both networks now; where one fails, without anything but the reason."""
        try:
            crafted_on = getattr(self._conditions[name], "crafted_on", "reference")
            reference = None if crafted_on == "network" else self._of_reference(name, theirs)
            batches = self._made.get(name)
            if batches is None:
                batches = self._crafted(self._conditions[name], mine)
            current = self._run(mine.live, batches, self._pairs.layers, None, mine.advance)
            if reference is None:
                reference = self._run(theirs.live, batches, self._their_layers(), self._weights(theirs), theirs.advance)
            return current, reference
        except LostRanksError:
            raise
        except Exception as error:
            if self._settings.on_error == "raise":
                raise
            reason = f"could not be measured: {type(error).__name__}: {error}"
            failed = Snapshot(problems=dict.fromkeys(self._pairs.layers, reason), output_problem=reason)
            return failed, failed

    def _of_reference(self, name: str, theirs: Side) -> Snapshot:
        """The reference under a condition, once; but for attacks crafted on the network, which are tried."""
        if name not in self._reference:
            condition, batches = self._conditions[name], self._made.get(name)
            if batches is None:
                batches = self._crafted(condition, theirs)
                if condition.crafted_on == "reference":
                    with failing_together(self._runner.world_size, self._runner.device):
                        self._made[name] = self._held(batches)
            found = self._run(theirs.live, batches, self._their_layers(), self._weights(theirs), theirs.advance)
            if isinstance(condition, Attack) and condition.crafted_on == "network":
                return found
            self._reference[name] = found
        return self._reference[name]

    def _run(
        self,
        network: nn.Module,
        batches: _Batches,
        layers: Any,
        weights: Mapping[str, Tensor] | None,
        advance: Callable[[], None],
    ) -> Snapshot:
        asked = list(layers) if self._settings.layers_under_conditions else []
        runner = self._runner_on(batches)
        if not asked:
            runner = replace(runner, representations=())
        return runner.snapshot(network, asked, weights=weights, advance=advance)

    def _crafted(self, attack: Attack, side: Side) -> _Batches:
        """This rank's samples, attacked for a network."""
        runner, network, found = self._runner, side.live, []
        weights = self._weights(side) if side.is_reference else None

        def forward(network: nn.Module, batch: Any) -> Any:
            with runner.context(network):
                return runner.forward(network, batch)

        def summed(batches: Iterator[tuple[Tensor, Any]], given: Mapping[str, Tensor]) -> Tensor:
            with substituted_parameters(network, given):
                for (ids, batch), (_, own) in zip(batches, self._clean, strict=True):
                    attacked = find_inputs(attack(network, batch, ids, forward=forward))
                    found.append((ids, with_inputs(own, attacked)))
            return torch.zeros((), device=runner.device)

        self._runner_on(self._clean).mean(network, summed, weights=weights, advance=side.advance)
        return found

    def _runner_on(self, batches: _Batches) -> ProbeRunner:
        probe: Probe = self._runner.probe.with_batches(batches, *self._runner.share())
        return replace(self._runner, probe=probe)

    def _weights(self, theirs: Side) -> Mapping[str, Tensor] | None:
        kept = theirs.snapshot.kept.get(_KEPT)
        if kept is None or is_sharded(theirs.live):  # into which they are put from the CPU
            return kept
        return {name: value.to(self._runner.device) for name, value in kept.items()}

    def _their_layers(self) -> list[str]:
        return list(dict.fromkeys(self._pairs.layers.values()))

    def _held(self, batches: _Batches) -> _Batches:
        """The batches, whose inputs lie in a file without a name where memory would hold too many."""
        inputs = [find_inputs(batch) for _, batch in batches]
        size = sum(part.nbytes for part in inputs)
        before = sum(find_inputs(batch).nbytes for made in self._made.values() for _, batch in made)
        if before + size <= _IN_MEMORY:
            return batches
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if size > free / 2:
            raise ValueError(
                f"its samples take {size / 2**30:.1f} GiB, and {tempfile.gettempdir()} has {free / 2**30:.1f} GiB "
                "free; use fewer `num_samples` or conditions"
            )
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            memory = torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
        held, start = [], 0
        for (ids, batch), part in zip(batches, inputs, strict=True):
            place = memory[start : start + part.nbytes].view(part.dtype).view(part.shape)
            held.append((ids, with_inputs(batch, place.copy_(part))))
            start += part.nbytes
        return held


def compared(measure: Measure, mine: Side, theirs: Side, pairs: Pairs) -> Values:
    """What a measure finds; where it raises, NaN for all that it gives."""
    try:
        return measure.compare(mine, theirs, pairs)
    except LostRanksError:
        raise
    except Exception as error:
        found = Values()
        for key in measure.keys(pairs):
            found.add(key, math.nan, f"could not be computed: {type(error).__name__}: {error}")
        return found


def _applies(measure: Measure, layers: bool) -> bool:
    """Whether it is of outputs or, if asked, of the sketches of layers, and of nothing else."""
    return "weights" not in measure.needs and (
        "logits" in measure.needs or (layers and isinstance(measure, LayerMeasure))
    )
