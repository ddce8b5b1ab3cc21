"""What is compared: layers and measures that both networks allow, found out on a first batch before training."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_sim._arguments import listed
from lightning_sim._fitting import FittedWeights
from lightning_sim._guards import is_sharded
from lightning_sim.conditions.attacks import Attack
from lightning_sim.matching import match_layers
from lightning_sim.measures import Measure, Pairs, Side
from lightning_sim.probe import Pairing, Snapshot, pair_layers, select_layers
from lightning_sim.probe.gradients import logits_problem
from lightning_sim.probe.layers import named_layers, plain_name
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.probe.shards import splits_layers
from lightning_sim.settings import Settings

__all__ = ["choose", "listing", "refusal"]


@dataclass(frozen=True)
class Chosen:
    """What a comparison consists of.

    Args:
        pairs: of layers.
        measures: that apply.
        pairing: how the layers were paired.
        left_out: layer -> why it is not measured.
        without: measure -> why it is not measured.
        lacking: what the output depends on that the reference's file lacks, in words.
    """

    pairs: Pairs
    measures: tuple[Measure, ...]
    pairing: Pairing
    left_out: dict[str, str]
    without: dict[str, str]
    lacking: str | None = None

    def notice(self) -> str:
        """What the user may not expect, in one text; empty where there is nothing."""
        said = []
        if self.pairing.how == "depth":
            pairs = listed(f"{mine} with {theirs}" for mine, theirs in self.pairs.layers.items())
            said.append(
                f"most layers have no namesake in the reference, and all are paired by relative depth: {pairs}; "
                'a mapping pairs them as you say, and layers="match" by their similarity'
            )
        for glob, names in self.pairing.overlooked.items():
            said.append(f"the glob {glob!r} matches one character for each ?, and leaves out {listed(names)}")
        left_out = self.left_out if self.lacking is None else {**self.left_out, "outputs": self.lacking}
        if left_out:
            said.append(f"not measured: {listing(left_out)}")
        return "; ".join(said)


def choose(
    settings: Settings,
    runner: ProbeRunner,
    network: nn.Module,
    other: nn.Module,
    saved: Snapshot | None,
    weights: FittedWeights | None = None,
    before: Mapping[str, str] | None = None,
) -> Chosen:
    """Pair the layers, and leave out or refuse the layers and measures that do not apply.

    Args:
        settings: what is asked for.
        runner: runs networks over the probe.
        network: the monitored one.
        other: whose forward the reference runs in.
        saved: the reference, where it is a file of sketches.
        weights: of the reference, where they come from a file.
        before: the pairs of layers that a training which is resumed has measured.

    Raises:
        ValueError: for what cannot be measured, with what can.
    """
    attacks = [name for name, condition in settings.conditions.items() if isinstance(condition, Attack)]
    if attacks and (is_sharded(network) or is_sharded(other)):
        raise ValueError(
            f"attacks need networks that are whole on every rank, not in shards: leave out {listed(attacks)} from "
            "`conditions`, of which corruptions and functions work"
        )
    if runner.replicas == 1 < runner.world_size and (splits_layers(network) or splits_layers(other)):
        which = type(network if splits_layers(network) else other).__name__
        raise ValueError(
            f"{which} is tensor-parallel, and nothing says which ranks run the same batches; measure it with a "
            "SimilarityMonitor under Lightning's ModelParallelStrategy"
        )
    saved_layers = [] if saved is None else list(saved.of(settings.sketched[0]))
    pairing = _paired(settings, runner, network, other, saved, weights, before)
    mine = theirs = _tried(runner, network, pairing.layers, "the network")
    unusable, misfit = {}, ""
    if saved is not None:
        theirs = saved
    elif other is not network:
        theirs = _tried(runner, other, pairing.layers.values(), "the reference")
    elif weights is not None and (weights.missing or weights.foreign):
        places = _places(other, weights)
        theirs = _tried(runner, other, [*pairing.layers, *itertools.chain(*places)], "the reference", weights)
        unusable, misfit = _unknown(theirs, weights, places), f"; {weights.refusal()}"
    unusable |= {
        name: f"{theirs.problems[o]} in the reference" for name, o in pairing.layers.items() if o in theirs.problems
    }
    unusable = {name: reason for name, reason in (unusable | mine.problems).items() if name in pairing.layers}
    if named := {name: reason for name, reason in unusable.items() if name in pairing.named}:
        raise ValueError(f"layers that cannot be measured: {listing(named)}{misfit}")
    left_out = pairing.left_out | unusable
    layers = {name: counterpart for name, counterpart in pairing.layers.items() if name not in unusable}
    if not layers:
        raise ValueError(f"no layer is left to measure: {listing(left_out)}{misfit}")
    uses = _every_use(layers, mine.of("features"), saved_layers if saved else theirs.of("features"))
    if before is not None and before.items() <= uses.items():
        uses = dict(before)
    pairs = Pairs(uses, tuple(settings.representations), _estimator(settings), settings.optional)
    sides = Side(mine, runner, network), Side(theirs, runner, other if saved is None else None, is_reference=True)
    if settings.needs_gradients and misfit and theirs.output_problem is not None:
        raise ValueError(f"gradients need the whole reference, whose output {theirs.output_problem}{misfit}")
    if settings.needs_gradients and settings.loss is None:
        _require_objective(*sides)
    reasons = _refused(settings, pairs, *sides, weights)
    measures = tuple(measure for measure in settings.measures if measure.name not in reasons)
    return Chosen(pairs, measures, pairing, left_out, reasons, theirs.output_problem if misfit else None)


def _paired(
    settings: Settings,
    runner: ProbeRunner,
    network: nn.Module,
    other: nn.Module,
    saved: Snapshot | None,
    weights: FittedWeights | None,
    before: Mapping[str, str] | None,
) -> Pairing:
    """The layers paired as the settings say."""
    if settings.layers != "match":
        return pair_layers(network, other if saved is None else list(saved.of(settings.sketched[0])), settings.layers)
    if before is not None:
        return Pairing(dict(before), "match")
    mine, theirs = select_layers(network, "auto"), select_layers(other, "auto")
    _tried(runner, network, mine, "the network")
    if saved is None:
        _tried(runner, other, theirs, "the reference", weights)
        saved = runner.snapshot(other, theirs, keep_logits=False, weights=weights)
    return match_layers(
        runner.snapshot(network, mine, keep_logits=False), saved, settings.representations[0], _estimator(settings)
    )


def _estimator(settings: Settings) -> str:
    return settings.estimator if settings.sketch == "default" else "biased"


def _places(network: nn.Module, weights: FittedWeights) -> list[list[str]]:
    """For each of the file's weights without a place in the network: the modules around, or before, where it runs."""
    modules = {"": network, **named_layers(network)}
    found = []
    for around in map(plain_name, weights.foreign.values()):
        # Lists do not run themselves; what one lacks may come after the last of what it has.
        of_list = isinstance(modules[around], nn.ModuleList | nn.ModuleDict)
        inside = [f"{around}.{child}" for child, _ in modules[around].named_children()] if of_list else [around]
        found.append([name for name in inside if name])
    return found


def _unknown(theirs: Snapshot, weights: FittedWeights, places: Sequence[Sequence[str]]) -> dict[str, str]:
    """Layer -> what it needs that the file lacks, or that the network has no place for; the output likewise."""
    lacks = f"depends on {listed(weights.missing, 4)}, which {weights} lacks"
    foreign = f"may depend on {listed(weights.foreign, 4)}, which {weights} holds and the network has no place for"
    ended = {name: place for place, name in enumerate(theirs.order)}
    ends = [max((ended.get(name, -1) for name in inside), default=-1) + (len(inside) > 1) for inside in places]
    first = min((end for end in ends if end >= 0), default=len(ended))
    found = {}
    for name, sketch in theirs.of("features").items():
        if weights.missing and not sketch.is_finite():
            found[name] = lacks
        elif ended[name] >= first:
            found[name] = foreign
    if weights.missing and theirs.logits is not None and not bool(theirs.logits.isfinite().all()):
        theirs.output_problem = lacks
    elif places:
        theirs.output_problem = theirs.output_problem or foreign
    return found


def listing(reasons: Mapping[str, str]) -> str:
    """Names with their reasons, as messages have them."""
    about: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        about[reason].append(name)
    return listed((f"{listed(names)} ({reason})" for reason, names in about.items()), separator="; ")


def _refused(
    settings: Settings, pairs: Pairs, mine: Side, theirs: Side, weights: FittedWeights | None
) -> dict[str, str]:
    """The measures that do not apply, which must be optional, and why."""
    reasons: dict[str, str] = {}
    for measure in settings.measures:
        if "weights" in measure.needs and theirs.network is None:
            reasons[measure.name] = "sketches hold neither the reference's parameters nor what follows from them"
        elif "weights" in measure.needs and (is_sharded(mine.live) or is_sharded(theirs.live)):
            reasons[measure.name] = "needs whole weights, which are sharded over the ranks"
        elif "weights" in measure.needs and weights is not None and not weights.is_whole:
            reasons[measure.name] = f"{weights} does not hold all of the network's parameters"
        elif (reason := refusal(measure, mine, theirs, pairs)) is not None:
            reasons[measure.name] = reason
    refused = {name: reason for name, reason in reasons.items() if name not in settings.optional}
    if refused:
        raise ValueError(f"measures that do not apply: {listing(refused)}")
    return reasons


def refusal(measure: Measure, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
    """Why a measure does not apply, or None; where it raises when asked, that is why."""
    try:
        return measure.refuse(mine, theirs, pairs)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        return reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"


def _require_objective(*sides: Side) -> None:
    """Gradients need logits where there is no loss."""
    for side, which in zip(sides, ("the network", "the reference"), strict=True):
        if side.network is None:  # saved: its gradients were taken before
            continue
        reason = side.snapshot.output_problem or logits_problem(side.snapshot.logits)
        if reason is not None:
            raise ValueError(
                f"gradients need logits (samples, classes) or a loss, and the output of {which} {reason}; pass "
                "SimilarityMonitor(..., loss=lambda output, batch: ...) giving one loss for every sample"
            )


def _tried(
    runner: ProbeRunner, network: nn.Module, layers: Iterable[str], which: str, weights: FittedWeights | None = None
) -> Snapshot:
    """The network on the first batch of the probe."""
    try:
        return runner.try_first_batch(network, list(layers), weights)
    except Exception as error:
        raise ValueError(
            f"{which}, {type(network).__name__}, could not be run on a batch of the probe "
            f"({type(error).__name__}: {error}); say how to run it with forward=lambda network, batch: ..."
        ) from error


def _every_use(layers: Mapping[str, str], mine: Iterable[str], theirs: Iterable[str]) -> dict[str, str]:
    """The pairs with every use of a layer that runs several times, ``name[1]`` with ``name[1]``, where both have it."""
    held = set(theirs)
    found = {}
    for used in mine:
        name = used if used in layers else used.rpartition("[")[0]
        if name in layers and (other := f"{layers[name]}{used.removeprefix(name)}") in held:
            found[used] = other
    return found
