"""What is compared: layers and measures that both networks allow, found out on a first batch before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from lightning_sim.measures import Measure, Pairs, Side
from lightning_sim.probe import Snapshot, pair_layers
from lightning_sim.probe.gradients import logits_problem
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.settings import Settings

__all__ = ["choose", "listing", "refusal"]


def choose(
    settings: Settings, runner: ProbeRunner, network: nn.Module, other: nn.Module, saved: Snapshot | None
) -> tuple[Pairs, tuple[Measure, ...]]:
    """Pair the layers, and leave out or refuse the measures that do not apply.

    Args:
        settings: what is asked for.
        runner: runs networks over the probe.
        network: the monitored one.
        other: whose forward the reference runs in.
        saved: the reference, where it is a file of sketches.

    Raises:
        ValueError: for what cannot be measured, with what can.
    """
    saved_layers = [] if saved is None else list(saved.of(settings.sketched[0]))
    layers = pair_layers(network, other if saved is None else saved_layers, settings.layers)
    mine = _tried(runner, network, layers, "the network")
    if saved is not None:
        theirs = saved
    else:
        theirs = mine if other is network else _tried(runner, other, layers.values(), "the reference")
    unusable = dict(mine.problems)
    for name, counterpart in layers.items():
        if counterpart in theirs.problems:
            unusable.setdefault(name, f"{theirs.problems[counterpart]} in the reference")
    if settings.layers == "auto":
        layers = {name: o for name, o in layers.items() if name not in unusable}
    elif unusable:
        raise ValueError(f"layers that cannot be measured: {listing(unusable)}")
    if not layers:
        raise ValueError(f"no layer is left to measure: {listing(unusable)}")
    uses = _every_use(layers, mine.of("features"), saved_layers if saved else theirs.of("features"))
    estimator = settings.estimator if settings.sketch == "default" else "biased"
    pairs = Pairs(uses, tuple(settings.representations), estimator)
    sides = Side(mine, runner, network), Side(theirs, runner, other if saved is None else None, is_reference=True)
    if settings.needs_gradients and settings.loss is None:
        _require_objective(*sides)
    return pairs, _applying(settings, pairs, *sides)


def listing(reasons: Mapping[str, str]) -> str:
    """Names with their reasons, as messages have them."""
    return "; ".join(f"{name} ({reason})" for name, reason in reasons.items())


def _applying(settings: Settings, pairs: Pairs, mine: Side, theirs: Side) -> tuple[Measure, ...]:
    """The measures that apply; those that do not must be optional."""
    reasons: dict[str, str] = {}
    for measure in settings.measures:
        if theirs.network is None and "weights" in measure.needs:
            reasons[measure.name] = "sketches hold neither the reference's parameters nor what follows from them"
        elif (reason := refusal(measure, mine, theirs, pairs)) is not None:
            reasons[measure.name] = reason
    refused = {name: reason for name, reason in reasons.items() if name not in settings.optional}
    if refused:
        raise ValueError(f"measures that do not apply: {listing(refused)}")
    return tuple(measure for measure in settings.measures if measure.name not in reasons)


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


def _tried(runner: ProbeRunner, network: nn.Module, layers: Iterable[str], which: str) -> Snapshot:
    """The network on the first batch of the probe."""
    try:
        return runner.try_first_batch(network, list(layers))
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
