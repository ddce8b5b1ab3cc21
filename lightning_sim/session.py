"""One network against one reference on one probe: what is chosen before, measured at any time, and kept to resume."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import lightning
import numpy
import torch
import torchmetrics
from torch import nn

from lightning_sim._version import __version__
from lightning_sim.choosing import Chosen, choose, listing
from lightning_sim.conditioned import Conditioned, compared
from lightning_sim.measures import Key, Pairs, Side, Values
from lightning_sim.probe import LostRanksError, Pairing, Snapshot, isolated_random_state
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.record import Measurement
from lightning_sim.settings import Settings
from lightning_sim.sketch import SketchSet

__all__ = ["OtherComparisonError", "Session"]


class OtherComparisonError(ValueError):
    """What was measured before cannot be continued, because it compared something else."""


class Session:
    """Compares a network with a reference.

    Args:
        settings: what is compared, and how.
        runner: runs networks over the probe.
    """

    def __init__(self, settings: Settings, runner: ProbeRunner) -> None:
        self.settings = settings
        self.measures = settings.measures
        # Once: every checkpoint asks for it, and the file may be gone or another one by then.
        self._described = settings.reference.describe()
        self._asked = repr(settings.layers)  # which of them are measured may depend on the weights at the start
        self._runner = runner
        self._conditioned = Conditioned(settings, runner)
        self._pairs = Pairs({})
        self._chosen: Chosen
        self._reference = Snapshot()
        self._last: Snapshot | None = None

    def keys(self) -> list[Key]:
        """What every measurement gives values for, once it is started."""
        return [*(key for m in self.measures for key in m.keys(self._pairs)), *self._conditioned.keys()]

    def num_batches(self) -> int:
        """Batches that one measurement runs of this rank's share of the probe."""
        passes = self._runner.num_batches() + self._conditioned.num_batches()
        return passes + sum(measure.num_batches(self._runner) for measure in self.measures)

    def start(self, network: nn.Module, advance: Callable[[], None], restored: Mapping[str, Any] | None) -> None:
        """Choose layers and measures, and take the reference's snapshot, or take it over from a checkpoint.

        Raises:
            ValueError: for what cannot work, with what would.
        """
        reference = self.settings.reference
        other = self._other(network)
        weights = reference.weights_for(network)
        before = restored["identity"]["layers"] if restored and restored.get("asked") == self._asked else None
        with isolated_random_state(self.settings.seed):
            self._fingerprint = self._runner.probe.fingerprint()
        samples, empty = self._runner.probe.size, self._runner.make_sketch()
        saved = reference.snapshot(self._fingerprint, samples, empty, self.settings.sketched, self._gradients() or "")
        chosen = choose(self.settings, self._runner, network, other, saved, weights, before)
        self._pairs, self.measures = chosen.pairs, chosen.measures
        self._reference = saved or Snapshot()
        if restored is not None:
            self._take_over(restored)
        # After a measurement that failed, "previous" holds nothing to be taken over.
        taken_over = restored is not None and bool(self._reference.sketches)
        if not self._reference.sketches:
            theirs = list(dict.fromkeys(self._pairs.layers.values()))
            self._reference = self._runner.snapshot(other, theirs, weights=weights, advance=advance, find_constant=True)
        constant = self._leave_out_constant(chosen.pairing)
        self._chosen = replace(chosen, left_out=chosen.left_out | constant)
        if reference.kind != "previous":  # which every measurement replaces
            for sketches in self._reference.sketches.values():
                for sketch in sketches.values():
                    sketch.to(self._runner.device).keep_cores = True
        keeps = [*(measure.name for measure in self.measures), *self._conditioned.keeps()]
        missing = [name for name in keeps if name not in self._reference.kept]
        if taken_over and reference.kind in ("init", "previous") and missing:
            raise ValueError(
                f"the checkpoint was monitored without {', '.join(missing)}, and the reference is gone by now; resume "
                "without these measures, or with another reference"
            )
        live = None if reference.saved is not None else other
        side = Side(self._reference, self._runner, live, weights, is_reference=True, advance=advance)
        for measure in self.measures:
            side.kept(measure)
        if not (taken_over and reference.kind == "previous"):  # which the next measurement replaces
            self._require_whole_reference()
        self._conditioned.start(self.measures, self._pairs, side)
        if self._runner.rank == 0 and (notice := self._chosen.notice()):
            warnings.warn(f"lightning_sim: {notice}", UserWarning, stacklevel=2)

    def measure(
        self,
        network: nn.Module,
        epoch: int,
        step: int,
        *,
        advance: Callable[[], None] = lambda: None,
        save: Callable[[SketchSet], None] | None = None,
    ) -> tuple[Measurement, dict[Key, str]]:
        """What the network has in common with the reference now; and why single values are NaN.

        Args:
            network: the one that it was started with.
            epoch: of the training.
            step: of the training.
            advance: called after every batch.
            save: given what was computed from.

        Raises:
            Exception: what the network raises, where the settings have ``on_error="raise"``; else all values are NaN.
        """
        started = time.perf_counter()
        current = self._snapshot(network, advance, save is not None)
        if save is not None:
            save(self._sketch_set(current, type(network).__name__, epoch, step))
        other = None if self.settings.reference.saved is not None else self._other(network)
        mine = Side(current, self._runner, network, advance=advance)
        theirs = Side(self._reference, self._runner, other, is_reference=True, advance=advance)
        found = Values()
        for measure in self.measures:
            found.update(compared(measure, mine, theirs, self._pairs))
        found.update(self._conditioned.compare(mine, theirs))
        if self.settings.reference.kind == "previous":
            self._keep_all(mine)
            self._reference = current  # and never recycled: a checkpoint that holds it may still be written
        else:
            self._last = Snapshot(current.sketches)  # their memory is all that is used again
        found.numbers[Key("seconds")] = time.perf_counter() - started
        return found.measurement(epoch, step), found.problems

    def describe(self) -> dict[str, Any]:
        """The metadata of the record."""
        sketch = self._runner.make_sketch()
        return {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "packages": _packages(),
            "reference": self._described,
            "layers": dict(self._pairs.layers),
            "pairing": self._chosen.pairing.how,
            "left_out": {"layers": self._chosen.left_out, "measures": self._chosen.without},
            "measures": [measure.name for measure in self.measures],
            "conditions": list(self.settings.conditions),
            "scales": {name: scale.to_state() for m in self.measures for name, scale in m.scales().items()},
            "representations": list(self.settings.representations),
            "gradients": self._gradients(),
            "estimator": self._pairs.estimator,
            "pool": self.settings.pool,
            "probe": {
                "num_samples": self._runner.probe.size,
                "choice": self._runner.probe.choice,
                "fingerprint": self._fingerprint,
            },
            "sketch": {
                "algorithm": self.settings.sketch,
                "num_buckets": sketch.num_buckets,
                "num_projections": sketch.num_projections,
                "seed": self.settings.seed,
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: the identity of the comparison, and a reference that cannot be made again."""
        moving = self.settings.reference.kind in ("init", "previous")
        reference = self._reference.state_dict() if moving else None
        measures = {measure.name: measure.state_dict() for measure in self.measures}
        return {"identity": self._identity(), "asked": self._asked, "reference": reference, "measures": measures}

    def _other(self, network: nn.Module) -> nn.Module:
        """Whose forward the reference runs in: its own, or that of the network it was a state of."""
        return network if self.settings.reference.module is None else self.settings.reference.module

    def _sketch_set(self, snapshot: Snapshot, network: str, epoch: int, step: int) -> SketchSet:
        """What a file holds of a snapshot: not the layers that could not be sketched."""
        sketches = {
            representation: {layer: sketch for layer, sketch in layers.items() if sketch.count}
            for representation, layers in snapshot.sketches.items()
        }
        gradients = self._gradients() or ""
        return SketchSet(sketches, network, self._fingerprint, gradients, epoch, step, snapshot.logits)

    def _snapshot(self, network: nn.Module, advance: Callable[[], None], keep_logits: bool) -> Snapshot:
        """The network now; where it fails, one without anything but the reason."""
        layers = list(self._pairs.layers)
        keep_logits |= any("logits" in measure.needs for measure in self.measures)
        recycled, self._last = self._last, None  # not to be used again should this measurement fail
        try:
            return self._runner.snapshot(network, layers, keep_logits=keep_logits, advance=advance, recycled=recycled)
        except LostRanksError:
            raise
        except Exception as error:
            if self.settings.on_error == "raise":
                raise
            reason = f"could not be measured: {type(error).__name__}: {error}"
            return Snapshot(problems=dict.fromkeys(layers, reason), output_problem=reason)

    def _keep_all(self, side: Side) -> None:
        """Keep what the next measurement compares with; nothing, where it cannot be had."""
        for measure in self.measures:
            try:
                side.kept(measure)
            except LostRanksError:
                raise
            except Exception:  # which comparing has reported
                side.snapshot.kept[measure.name] = {}

    def _take_over(self, state: Mapping[str, Any]) -> None:
        before = state["identity"]
        changed = {key: value for key, value in self._identity().items() if before.get(key, value) != value}
        if changed:
            differences = "; ".join(f"{key}: was {before.get(key)}, is {value}" for key, value in changed.items())
            raise OtherComparisonError(
                f"the checkpoint was monitored with other settings, so its record cannot be continued ({differences}). "
                "Resume with the same settings, or give the monitor another name"
            )
        if state["reference"] is not None:
            self._reference = Snapshot.from_state_dict(state["reference"])
        for measure in self.measures:
            measure.load_state_dict(state.get("measures", {}).get(measure.name, {}))

    def _identity(self) -> dict[str, Any]:
        return {
            "reference": self._described.get("sha256", self._described["kind"]),
            "probe": self._fingerprint,
            "layers": dict(self._pairs.layers),
            "representations": list(self.settings.representations),
            "gradients": self._gradients(),
            "estimator": self._pairs.estimator,
            "sketch": self.settings.sketch,
            "pool": self.settings.pool,
            "num_buckets": self.settings.num_buckets,
            "num_projections": self.settings.num_projections,
            "seed": self.settings.seed,
        }

    def _leave_out_constant(self, pairing: Pairing) -> dict[str, str]:
        """Leave out layers that nobody named and that are the same for every sample in the reference; and why."""
        constant = {}
        for layer, counterpart in self._pairs.layers.items():
            sketch = self._reference.of("features").get(counterpart)
            problem = sketch.problem() if sketch is not None and sketch.is_finite() else None
            named = layer in pairing.named or layer.rpartition("[")[0] in pairing.named
            if not named and (problem is not None or counterpart in self._reference.constant):
                constant[layer] = f"{problem or 'is constant over the samples'} in the reference"
        kept = {layer: other for layer, other in self._pairs.layers.items() if layer not in constant}
        if not kept:
            raise ValueError(f"no layer is left to measure: {listing(constant)}")
        self._pairs = replace(self._pairs, layers=kept)
        return constant

    def _gradients(self) -> str | None:
        """Whose gradients are taken, in words."""
        if not self.settings.needs_gradients:
            return None
        loss = self.settings.loss
        return f"expected loss, beta = {self.settings.beta}" if loss is None else getattr(loss, "__name__", "loss")

    def _require_whole_reference(self) -> None:
        """What is NaN in the reference would be NaN in every measurement."""
        theirs = set(self._pairs.layers.values())
        broken = {layer: problem for layer, problem in self._reference.problems.items() if layer in theirs}
        for representation, sketches in self._reference.sketches.items():
            for layer, sketch in sketches.items():
                if layer in theirs and not sketch.is_finite():
                    broken.setdefault(layer, f"holds NaN or infinite {representation}")
        if broken:
            raise ValueError(f"the reference cannot be compared with: {listing(broken)}")


def _packages() -> dict[str, str]:
    # As plain strings: torch's own kind may not be in checkpoints.
    found = {package.__name__: str(package.__version__) for package in (torch, lightning, torchmetrics, numpy)}
    return found | {"lightning-sim": __version__, "python": platform.python_version()}
