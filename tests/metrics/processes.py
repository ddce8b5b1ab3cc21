"""What every process of a gloo group does with the metrics, and how to start the processes."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_sim.metrics import ErrorConsistency, StitchingMap
from tests.metrics.cases import CASES, DECISIVE, WIDTHS, WITH_ERRORS, Batch, Case
from tests.processes import start_ranks

# Which rank gets which of the six batches.
DIVISIONS = {
    2: {"uneven": [0, 0, 0, 1, 0, 0], "first rank empty": [1] * 6, "last rank empty": [0] * 6},
    3: {"uneven": [2, 0, 2, 1, 2, 2], "one rank empty": [0, 0, 2, 2, 0, 2], "only the middle one": [1] * 6},
}


def division(case: Case, ranks: list[int], rank: int) -> list[Batch]:
    return [batch for batch, owner in zip(case.batches, ranks, strict=False) if owner == rank]


def run(world_size: int, folder: Path) -> list[dict[str, Any]]:
    """What `_work` found in every process of a group of this size."""
    start_ranks(_process, world_size, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _process(rank: int, world_size: int, folder: Path) -> None:
    # A rank without samples is warned that nothing was given to it.
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    try:
        torch.save(_work(rank, world_size), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def _work(rank: int, world_size: int) -> dict[str, Any]:
    found: dict[str, Any] = {"world_size": dist.get_world_size(), "rank": dist.get_rank()}
    found["values"] = {
        (name, label): case.fed(division(case, ranks, rank)).compute()
        for name, case in CASES.items()
        for label, ranks in DIVISIONS[world_size].items()
    }
    uneven = DIVISIONS[world_size]["uneven"]
    found["steps"] = {name: _steps(case, rank, world_size) for name, case in CASES.items()}
    found["afterwards"] = {name: _interrupted(case, uneven, rank) for name, case in CASES.items()}
    found["traffic"] = {name: _traffic(case.fed(division(case, uneven, rank))) for name, case in CASES.items()}
    found["map"] = _stitching(uneven, rank)
    found["estimates"] = {name: CASES[name].fed(division(CASES[name], uneven, rank)).estimate() for name in WITH_ERRORS}
    found["consistency"] = _consistency(uneven, rank)
    if world_size == 2:
        found |= _with_other_settings({name: division(case, uneven, rank) for name, case in CASES.items()})
    if world_size == 3:
        group = dist.new_group([0, 2])
        if rank != 1:
            found["group"] = {
                name: case.fed(division(case, [0, 0, 2, 0, 2, 0], rank), process_group=group).compute()
                for name, case in CASES.items()
            }
    return found


def _stitching(ranks: list[int], rank: int) -> tuple[Any, dict[str, list[int]]]:
    """The map of all ranks' samples, and what was sent for it."""
    metric = StitchingMap(*WIDTHS)
    for (x, y), owner in zip(CASES["cca"].batches, ranks, strict=True):
        if owner == rank:
            metric.update(x, y)
    traffic = _traffic(metric)
    return tuple(metric.compute()), traffic


def consistency_batches() -> list[Batch]:
    """Logits of two networks with labels that the first knows better."""
    batches = CASES["agreement"].batches
    return [(a, b, torch.where(a[:, 0] > 0, a.argmax(1), b.argmin(1))) for a, b in batches]


def _consistency(ranks: list[int], rank: int) -> tuple[Any, Any]:
    metric = ErrorConsistency()
    for batch, owner in zip(consistency_batches(), ranks, strict=True):
        if owner == rank:
            metric.update(*batch)
    return metric.compute(), metric.estimate()


def _with_other_settings(mine: dict[str, list[Batch]]) -> dict[str, Any]:
    return {
        "user's gather": {
            name: case.fed(mine[name], dist_sync_fn=gather_all_tensors).compute() for name, case in CASES.items()
        },
        "sync by hand": {name: _synced_by_hand(case.fed(mine[name])) for name, case in CASES.items()},
        "local": {name: case.fed(mine[name], sync_on_compute=False).compute() for name, case in CASES.items()},
        "broken": {
            (name, state, kind): _with_broken_state(case.fed(mine[name]), state, kind)
            for name, case in CASES.items()
            for state in DECISIVE[name]
            for kind in ("not reduced", "maximum")
        },
    }


def _traffic(metric: Metric) -> dict[str, list[int]]:
    """The number of elements that each call of a collective of torch was given."""
    calls: dict[str, list[int]] = {}

    def counted(name: str) -> Any:
        original = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            tensor = next(value for value in args if isinstance(value, Tensor))
            calls.setdefault(name, []).append(tensor.numel())
            return original(*args, **kwargs)

        return call

    names = ("all_reduce", "all_gather", "all_gather_into_tensor", "gather", "broadcast")
    with mock.patch.multiple(dist, **{name: counted(name) for name in names}):
        metric.compute()
    return calls


def _synced_by_hand(metric: Metric) -> tuple[bool, Any]:
    """Whether `unsync` brings back the local states, and the value in between."""
    before = {name: value.clone() for name, value in metric.metric_state.items()}
    metric.sync()
    value = type(metric).compute(metric)  # without torchmetrics' wrapper, which would synchronise again
    metric.unsync()
    return all(torch.equal(value, before[name]) for name, value in metric.metric_state.items()), value


def _interrupted(case: Case, ranks: list[int], rank: int) -> Any:
    """The value after values in between: every rank goes on from its own state."""
    # torchmetrics would return the last value, without a word to the others, on a rank that got nothing since.
    metric = case.fed([], compute_with_cache=False)
    for batch, owner in zip(case.batches, ranks, strict=False):
        if owner == rank:
            metric.update(*batch)
        metric.compute()
    return metric.compute()


def _steps(case: Case, rank: int, world_size: int) -> tuple[list[Any], Any]:
    """Values of `forward` of one batch on every rank, synchronised on every step, and of all of them at the end."""
    metric = case.make(dist_sync_on_step=True).set_dtype(torch.float64)
    steps = len(case.batches) // world_size
    return [metric(*case.batches[step * world_size + rank]) for step in range(steps)], metric.compute()


def _with_broken_state(metric: Metric, state: str, kind: str) -> Any:
    """The value, or the error, when one state is not summed over the ranks."""

    def broken(value: Tensor, group: Any = None) -> list[Tensor]:
        gathered = gather_all_tensors(value, group)
        if value is getattr(metric, state):
            return [value] if kind == "not reduced" else [torch.stack(gathered).amax(0)]
        return gathered

    metric.dist_sync_fn = broken
    try:
        return metric.compute()
    except ValueError as error:
        return str(error)
