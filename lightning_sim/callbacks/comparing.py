"""What a monitor compares in one training: probe, layers, measures and the reference's snapshot."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

import lightning
import numpy
import torch
import torchmetrics
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

import lightning_sim
from lightning_sim._measurement import SimilarityMatrix
from lightning_sim.callbacks.in_training import probe_runner, require_whole_weights, whose_weights
from lightning_sim.callbacks.settings import DEFAULT_MEASURES, Settings
from lightning_sim.comparison import (
    LAYER_MEASURES,
    MEAN_EMBEDDINGS,
    OUTPUT_MEASURES,
    compare_layers,
    compare_outputs,
    compare_weights,
    mean_embeddings,
)
from lightning_sim.probe import Snapshot, call_network, isolated_random_state, pair_layers
from lightning_sim.probe.fisher import FISHER_MEASURES, FisherMeasures
from lightning_sim.probe.gradients import logits_problem
from lightning_sim.probe.layers import named_layers

__all__ = ["Comparing", "OtherComparisonError"]


class OtherComparisonError(ValueError):
    """What was measured before cannot be continued, because it compared something else."""

_PACKAGES = (torch, lightning, torchmetrics, numpy, lightning_sim)


class Comparing:
    """One network against one reference on one probe, in a running training."""

    def __init__(self, settings: Settings, trainer: Trainer, network: LightningModule) -> None:
        require_whole_weights(trainer)
        self.settings = settings
        self.parties = (trainer, network)
        self.measures = settings.measures
        if settings.forward is call_network and not is_overridden("forward", network):
            raise ValueError(
                f"{type(network).__name__} defines no forward(); define it, or say how to run the network with "
                "SimilarityMonitor(..., forward=lambda network, batch: network.model(batch[0]))"
            )
        # Once: every checkpoint asks for it, and the file may be gone or another one by then.
        self._described = settings.reference.describe()
        self._runner = probe_runner(settings, trainer)
        self._fisher = FisherMeasures(self._runner, tuple(m for m in self.measures if m in FISHER_MEASURES))
        self._pairs: dict[str, str] = {}
        self._reference = Snapshot()
        self._last: Snapshot | None = None

    def num_batches(self) -> int:
        """Batches that one measurement runs of this rank's share of the probe."""
        return self._runner.num_batches() + self._fisher.num_batches()

    def start(
        self,
        trainer: Trainer,
        network: LightningModule,
        advance: Callable[[], None],
        restored: Mapping[str, Any] | None,
    ) -> None:
        """Choose the layers and take the reference's snapshot, or take it over from a checkpoint."""
        reference = self.settings.reference
        other = reference.module if reference.module is not None else network
        weights = reference.weights_for(network)
        self._choose(network, other)
        self._require_fisher(network, other)
        if restored is not None:
            self._take_over(restored)
        if not self._reference.sketches:
            self._reference = self._runner.snapshot(
                other,
                list(dict.fromkeys(self._pairs.values())),
                weights=weights,
                advance=advance,
                chain=self._their_chain,
            )
        if reference.kind != "previous":  # which every measurement replaces
            for sketches in self._reference.sketches.values():
                for sketch in sketches.values():
                    sketch.to(self._runner.device).keep_grams = True
        missing = self._fisher.missing(self._reference)
        if missing and restored is not None and reference.kind in ("init", "previous"):
            raise ValueError(
                f"the checkpoint was monitored without {', '.join(missing)}, and the reference is gone by now; resume "
                "without these measures, or with another reference"
            )
        self._fisher.complete(self._reference, other, weights, advance)
        broken = {
            layer: problem
            for layer, sketch in self._reference.of("features").items()
            if "NaN" in (problem := sketch.problem() or "")
        }
        theirs = self._pairs.values()
        broken |= {layer: problem for layer, problem in self._reference.problems.items() if layer in theirs}
        if broken:
            raise ValueError(f"the reference cannot be compared with: {_listing(broken)}")
        self._choose_output_measures()

    def measure(
        self, network: nn.Module, advance: Callable[[], None], save: Callable[[Snapshot, str, str], None] | None = None
    ) -> tuple[dict[str, float], list[SimilarityMatrix], dict[str, str]]:
        """The values and matrices of this moment, and what could not be computed, by name.

        `save` is given what they were computed from, the probe's fingerprint, and whose gradients were taken.
        """
        reference = self.settings.reference
        other = reference.module if reference.module is not None else network
        compares_outputs = bool(self._output_measures())
        keep_logits = compares_outputs or save is not None
        recycled, self._last = self._last, None  # not to be used again should this measurement fail
        current = self._runner.snapshot(
            network,
            list(self._pairs),
            keep_logits=keep_logits,
            advance=advance,
            chain=self._own_chain if "wcka" in self.measures else (),
            recycled=recycled,
        )
        if save is not None:
            save(current, self._fingerprint, self._gradients() or "")
        layer_measures = [measure for measure in self.measures if measure in LAYER_MEASURES]
        values: dict[str, float] = {}
        matrices: list[SimilarityMatrix] = []
        problems: dict[str, str] = {}
        for representation in self.settings.representations:
            if layer_measures:
                layer_values, layer_matrices, layer_problems = compare_layers(
                    current,
                    self._reference,
                    self._pairs,
                    layer_measures,
                    representation=representation,
                    estimator=self.settings.estimator,
                )
                values |= layer_values
                matrices += layer_matrices
                problems |= layer_problems
            if "mean_embedding" in self.measures:
                norms, norm_problems = mean_embeddings(current, list(self._pairs), representation)
                values |= norms
                problems |= norm_problems
        if "wcka" in self.measures:
            weight_values, weight_matrices, weight_problems = compare_weights(
                current, self._reference, self._chained_pairs()
            )
            values |= weight_values
            matrices += weight_matrices
            problems |= weight_problems
        if compares_outputs:
            output_values, output_problems = compare_outputs(
                current.logits, self._reference.logits, self._output_measures()
            )
            if "" in current.problems:
                output_problems = {"": current.problems[""]}
            values |= output_values
            problems |= output_problems
        fisher_values, fisher_problems = self._fisher.measure(network, current, other, self._reference, advance)
        values |= fisher_values
        problems |= fisher_problems
        if reference.kind == "previous":
            self._fisher.keep_weights(current, network)
            self._reference = current  # and never recycled: a checkpoint that holds it may still be written
        else:
            self._last = current
        return values, matrices, problems

    def names(self) -> list[str]:
        """Every name that `measure` gives a value for."""
        layered = [m for m in self.measures if m in LAYER_MEASURES]
        layered += MEAN_EMBEDDINGS if "mean_embedding" in self.measures else []
        names = [
            f"{measure}/{representation}/{layer}"
            for representation in self.settings.representations
            for measure in layered
            for layer in self._pairs
        ]
        if "wcka" in self.measures:
            names += [f"wcka/weights/{layer}" for layer in self._chained_pairs()]
        return names + self._output_measures() + list(self._fisher.measures)

    def describe(self, trainer: Trainer, monitor: Callback) -> dict[str, Any]:
        """The metadata of the record that the monitor keeps."""
        logger_version = getattr(trainer.logger, "version", None)
        sketch = self._runner.make_sketch()
        packages = {package.__name__.replace("_", "-"): str(package.__version__) for package in _PACKAGES}
        return {
            "run": str(logger_version) if logger_version is not None else None,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "packages": packages | {"python": platform.python_version()},
            "reference": self._described,
            "weights": whose_weights(trainer, monitor),
            "layers": dict(self._pairs),
            "measures": list(self.measures),
            "representations": list(self.settings.representations),
            "gradients": self._gradients(),
            "estimator": self.settings.estimator if self.settings.sketch == "default" else "biased",
            "pool": self.settings.pool,
            "probe": {"num_samples": self._runner.probe.size, "fingerprint": self._fingerprint},
            "sketch": {
                "algorithm": self.settings.sketch,
                "num_buckets": sketch.num_buckets,
                "num_projections": sketch.num_projections,
                "seed": self.settings.seed,
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: the identity of the comparison, and a reference that cannot be made again."""
        remade = self.settings.reference.kind in ("checkpoint", "sketches")
        return {"identity": self._identity(), "reference": None if remade else self._reference.state_dict()}

    def _take_over(self, state: Mapping[str, Any]) -> None:
        before = state["identity"]
        changed = {key: value for key, value in self._identity().items() if before.get(key) != value}
        if changed:
            differences = "; ".join(f"{key}: was {before.get(key)}, is {value}" for key, value in changed.items())
            raise OtherComparisonError(
                f"the checkpoint was monitored with other settings, so its record cannot be continued ({differences}). "
                "Resume with the same settings, or give the monitor another name"
            )
        if state["reference"] is not None:
            self._reference = Snapshot.from_state_dict(state["reference"])

    def _identity(self) -> dict[str, Any]:
        return {
            "reference": self._described.get("sha256", self._described["kind"]),
            "probe": self._fingerprint,
            "layers": dict(self._pairs),
            "representations": list(self.settings.representations),
            "gradients": self._gradients(),
            "sketch": self.settings.sketch,
            "pool": self.settings.pool,
            "num_buckets": self.settings.num_buckets,
            "num_projections": self.settings.num_projections,
            "seed": self.settings.seed,
        }

    def _gradients(self) -> str | None:
        if not self.settings.needs_gradients:
            return None
        loss = self.settings.loss
        return f"expected loss, beta = {self.settings.beta}" if loss is None else getattr(loss, "__name__", "loss")

    def _choose(self, network: nn.Module, other: nn.Module) -> None:
        layers = self.settings.layers
        with isolated_random_state(self.settings.seed):
            self._fingerprint = self._runner.probe.fingerprint()
        saved = self.settings.reference.snapshot(
            self._fingerprint,
            self._runner.probe.size,
            self._runner.make_sketch(),
            self.settings.sketched,
            self._gradients() or "",
        )
        saved_layers = [] if saved is None else list(saved.of(self.settings.sketched[0]))
        pairs = pair_layers(network, other if saved is None else saved_layers, layers)
        mine = self._try(network, list(pairs), "the network")
        if saved is not None:
            theirs = self._reference = saved
        else:
            theirs = mine if other is network else self._try(other, list(pairs.values()), "the reference")
        unusable = {name: problem for name, problem in mine.problems.items() if name}
        for name, counterpart in pairs.items():
            if counterpart in theirs.problems:
                unusable.setdefault(name, f"{theirs.problems[counterpart]} in the reference")
        if layers == "auto":
            pairs = {name: o for name, o in pairs.items() if name not in unusable}
        elif unusable:
            raise ValueError(f"layers that cannot be measured: {_listing(unusable)}")
        if not pairs:
            raise ValueError(f"no layer is left to measure: {_listing(unusable)}")
        self._pairs = {
            used: f"{pairs[name]}{used.removeprefix(name)}"
            for used in mine.of("features")
            for name in [used.rpartition("[")[0] if used not in pairs else used]
            if name in pairs
            and f"{pairs[name]}{used.removeprefix(name)}" in (saved_layers if saved else theirs.of("features"))
        }
        self._logits = (mine, theirs)
        self._require_objective()
        self._find_chains(network, other)

    def _find_chains(self, network: nn.Module, other: nn.Module) -> None:
        self._own_chain: list[str] = []
        self._their_chain: list[str] = []
        self._no_chain = "sketches hold no weights of the reference" if self.settings.reference.saved else None
        if "wcka" not in self.measures or self._no_chain:
            return
        found: dict[str, list[str]] = {}
        for which, module in {"the network": network, "the reference": other}.items():
            try:
                found[which] = self._runner.find_chain(module)
            except ValueError as error:
                self._no_chain = f"only a chain of linear layers has one, and in {which} {error}"
                return
        own, theirs = found.values()
        widths = [named_layers(module)[chain[0]].in_features for module, chain in ((network, own), (other, theirs))]
        if widths[0] != widths[1]:
            self._no_chain = f"the first layer takes {widths[0]} inputs, and that of the reference {widths[1]}"
            return
        self._own_chain, self._their_chain = own, theirs

    def _require_objective(self) -> None:
        if not self.settings.needs_gradients or self.settings.loss is not None:
            return
        for snapshot, which in zip(self._logits, ("the network", "the reference"), strict=True):
            if snapshot is self._reference:  # saved: its gradients were taken before
                continue
            reason = snapshot.problems.get("") or logits_problem(snapshot.logits)
            if reason is not None:
                raise ValueError(
                    f"gradients need logits (samples, classes) or a loss, and the output of {which} {reason}; pass "
                    "SimilarityMonitor(..., loss=lambda output, batch: ...) giving one loss for every sample"
                )

    def _require_fisher(self, network: nn.Module, other: nn.Module) -> None:
        problems = self._fisher.problems(network, other, has_weights=self.settings.reference.saved is None)
        if problems:
            raise ValueError(f"measures that do not apply: {_listing(problems)}")

    def _try(self, network: nn.Module, layers: list[str], which: str) -> Snapshot:
        try:
            return self._runner.try_first_batch(network, layers)
        except Exception as error:
            raise ValueError(
                f"{which}, {type(network).__name__}, could not be run on a batch of the probe "
                f"({type(error).__name__}: {error}); say how to run it with forward=lambda network, batch: ..."
            ) from error

    def _choose_output_measures(self) -> None:
        mine, theirs = self._logits
        del self._logits
        reason = mine.problems.get("") or theirs.problems.get("")
        if reason is None and mine.logits is not None and theirs.logits is not None:
            a, b = mine.logits.shape[1], theirs.logits.shape[1]
            if a != b:
                reason = f"has {a} classes, and the reference {b}"
            elif a < 2:
                reason = "has one column, and predictions need at least two classes"
        reasons = dict.fromkeys(OUTPUT_MEASURES, f"the output {reason}") if reason else {}
        if self._no_chain is not None:
            reasons["wcka"] = self._no_chain
        elif not self._chained_pairs():
            reasons["wcka"] = f"of the linear layers, {', '.join(self._own_chain)}, none is chosen in both networks"
        asked = [measure for measure in self.measures if measure in reasons]
        # Who takes all of the defaults, and more perhaps, means those that apply.
        if asked and not set(DEFAULT_MEASURES) <= set(self.settings.measures):
            raise ValueError(f"measures that do not apply: {_listing({m: reasons[m] for m in asked})}")
        self.measures = tuple(measure for measure in self.measures if measure not in reasons)

    def _chained_pairs(self) -> dict[str, str]:
        """Of the chosen pairs of layers those of linear layers."""
        theirs = self._reference.chain or {}
        return {name: other for name, other in self._pairs.items() if name in self._own_chain and other in theirs}

    def _output_measures(self) -> list[str]:
        return [measure for measure in self.measures if measure in OUTPUT_MEASURES]


def _listing(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
