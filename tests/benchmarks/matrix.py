"""The layer x layer matrix at a later epoch: time, error and memory, ours and every peer's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from torch import Tensor

from tests.benchmarks.contenders import OURS, Contender, contenders
from tests.benchmarks.exact import exact_matrix, features_of
from tests.benchmarks.figure import Figure, ratio_figure
from tests.benchmarks.memory import peak_growth
from tests.benchmarks.settings import Settings
from tests.benchmarks.timing import interleaved
from tests.benchmarks.workloads import NETWORKS, Workload, workload

__all__ = ["measure"]

SPEED_BARS = {"ResNet-18": 1.9, "MLP": 3.0}


def measure(settings: Settings) -> Iterator[Figure]:
    """All layers of a network with all of the reference, whose sketches are there already; peers run both."""
    for name in settings.choose(tiny=NETWORKS, quick=tuple(SPEED_BARS), full=NETWORKS):
        # The transformer has no bar, and is there because one peer takes nothing but sequences.
        load = workload(name, settings, 32 if name == "transformer" and settings.size == "full" else None)
        running, failures = _prepare(load)
        yield from failures
        yield from _errors(load, running)
        yield from _speed(load, settings, {contender.name: run for contender, run in running.items()})
        yield from _memory(load, settings, [contender.name for contender in running])


def _prepare(load: Workload) -> tuple[dict[Contender, Callable[[], Tensor]], list[Figure]]:
    """What runs on one batch, and why the others do not."""
    running, failures = {}, []
    for contender in contenders():
        title = f"matrix, {load.name}: {contender.name} {contender.version or ''}".rstrip()
        if contender.version is None:
            failures.append(Figure(title, None, note="not installed"))
            continue
        try:
            contender.prepare(load.of(load.batch_size), load.changed())()
            running[contender] = contender.prepare(load, load.changed())
        except Exception as error:
            if contender.name == OURS:
                raise
            reason = " ".join(str(error).split())
            failures.append(Figure(title, None, note=f"failed: {type(error).__name__}: {reason[:160]}"))
    return running, failures


def _errors(load: Workload, running: dict[Contender, Callable[[], Tensor]]) -> Iterator[Figure]:
    rows, columns = features_of(load, load.changed()), features_of(load, load.network)
    unbiased = exact_matrix(rows, columns)
    minibatch = exact_matrix(rows, columns, load.batch_size)
    del rows, columns
    for contender, run in running.items():
        matrix = run().detach().cpu().double()
        title = f"matrix, {load.name}: largest error of {contender.name} {contender.version}"
        claims = (("minibatch", minibatch),) if contender.minibatch else ()
        for kind, truth in (*claims, ("unbiased", unbiased)):
            yield Figure(f"{title}, against exact {kind} CKA", float((matrix - truth).abs().max()), unit="")


def _speed(load: Workload, settings: Settings, runs: dict[str, Callable[[], Tensor]]) -> Iterator[Figure]:
    rounds = interleaved(runs, settings.rounds, device=load.device, warm_up=0)  # each has run by now
    peers = [name for name in runs if name != OURS]
    note = f"{len(load.layers)} x {len(load.layers)} layers, N = {len(load.inputs)}, batch {load.batch_size}"
    fastest = min(peers, key=lambda name: statistics.median(rounds.seconds[name]), default=None)
    for name in peers:
        bar = SPEED_BARS.get(load.name) if name == fastest else None
        title = f"matrix, {load.name}: time of {name} / ours"
        yield ratio_figure(title, rounds, name, OURS, bar=bar, at_least=True, note=note)
    if not peers:
        yield Figure(f"matrix, {load.name}: time of the fastest peer / ours", None, note="no peer runs")


def _memory(load: Workload, settings: Settings, names: list[str]) -> Iterator[Figure]:
    if settings.size == "tiny":
        return
    grown = {name: peak_growth(name, load.name, len(load.inputs), settings) for name in names}
    for name, growth in grown.items():
        yield Figure(f"matrix, {load.name}: peak memory of {name}", growth / 1e6, unit="MB")
    peers = [growth for name, growth in grown.items() if name != OURS]
    if peers and load.name in SPEED_BARS:
        yield Figure(f"matrix, {load.name}: peak memory, ours / leanest peer's", grown[OURS] / min(peers), bar=1.0)
